"""The explorer's commands, a file for each kind of question. What is heavy is imported inside them."""
