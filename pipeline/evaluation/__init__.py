"""What a model can do: questions asked, answers scored, and what is reached without seeing the images."""
