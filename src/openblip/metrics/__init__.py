"""Measures of captions, answers, classes, retrieval and ranking: numpy in, plain numbers out; Java in `java` alone.

One module for each kind: `caption` (BLEU, ROUGE-L, CIDEr-D), `words` (its tokenizer), `java` (METEOR, SPICE),
`answers` (VQA accuracy), `classification` (top-1, top-5), `retrieval` (recall, ranks, NDCG) and `scores` (ROC AUC,
average precision).
"""
