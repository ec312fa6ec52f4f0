"""Output lengths of a served model: of answers generated here, or by servers that run elsewhere."""
