"""Measures of captions, answers, retrieval and ranking: numpy in, plain numbers out, no Java.

One module for each kind: `caption` (BLEU, ROUGE-L, CIDEr-D), `words` (its tokenizer), `answers` (VQA accuracy),
`retrieval` (recall, ranks, NDCG) and `scores` (ROC AUC, average precision).
"""
