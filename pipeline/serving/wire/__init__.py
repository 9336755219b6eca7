"""What travels: requests, images and answers in the format of OpenAI's chat completions."""
