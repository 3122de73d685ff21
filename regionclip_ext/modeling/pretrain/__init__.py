"""Region-text pretraining: a teacher's pseudo labels train a student image encoder."""
