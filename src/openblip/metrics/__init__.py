"""Measures of captions, answers, retrieval and ranking: numpy in, plain numbers out; Java in `java` alone.

One module for each kind: `caption` (BLEU, ROUGE-L, CIDEr-D), `words` (its tokenizer), `java` (METEOR, SPICE),
`answers` (VQA accuracy), `retrieval` (recall, ranks, NDCG) and `scores` (ROC AUC, average precision).
"""
