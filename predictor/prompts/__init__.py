"""What the network reads of a prompt: tokens, words and features."""
