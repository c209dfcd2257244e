"""Claims of the papers, put to the test in the drawn world, where the truth of every text is known."""
