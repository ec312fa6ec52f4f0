"""Where results go: the rule for --out, folders to work in next to it, streams that outlive their readers."""
