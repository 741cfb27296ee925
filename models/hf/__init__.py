"""Models as Hugging Face transformers saves them, as baselines that are evaluated and not trained."""
