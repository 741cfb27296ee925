"""MesaNet's mixer, and what a study of a trained model asks of its layers."""
