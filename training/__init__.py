"""Training the small model that the package embeds: scenes/ makes frames with questions, the rest learns to answer them."""
