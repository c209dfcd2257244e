"""The synthetic scene world: drawn images, texts of known truth, questions with answers, noise of known rate.

`scene` says what is in an image and `geometry` when a relation holds; `draw` paints it; `language` says true
things about it; `parser` and `truth` decide whether any text is true of it; `questions` asks; `noise` makes the
texts that a web crawl would; `dataset` gives all of that as an indexable source and writes it to disk.
"""
