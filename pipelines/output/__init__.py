"""Where results go: the rule for --out, folders to work in beside it, streams that outlive their readers."""
