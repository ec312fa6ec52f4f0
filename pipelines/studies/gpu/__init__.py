"""The studies that need a GPU, sized for one that is lent for minutes."""
