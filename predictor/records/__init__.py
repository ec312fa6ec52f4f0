"""Files and conversations made prompts and lengths."""
