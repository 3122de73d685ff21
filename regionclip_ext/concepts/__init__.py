"""The concept pool: nouns of captions, their prompts and embeddings, and pseudo labels from them."""
