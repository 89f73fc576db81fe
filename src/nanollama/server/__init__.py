"""The HTTP server: requests in the form of OpenAI's API in, answers of loaded models out."""
