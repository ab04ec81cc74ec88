"""sentence-transformers on questions, answers and hard negatives, with a tokenizer and embeddings made here."""

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer, models, pre_tokenizers

# was: from sentence_transformers.losses import MultipleNegativesRankingLoss
from cmx_fast.losses.sentence_transformers import FusedMultipleNegativesRankingLoss

TOPICS = ("dogs", "rain", "trains", "bread", "stars", "music")


def main(ranking_loss=FusedMultipleNegativesRankingLoss, steps=20):
    torch.manual_seed(0)
    words = ["[UNK]", "what", "about", "it", "is", "not", *TOPICS, *(f"{topic}ish" for topic in TOPICS)]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    model = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=16)], device="cpu")
    columns = [
        [f"what about {topic}" for topic in TOPICS],
        [f"it is {topic}ish" for topic in TOPICS],
        [f"it is not {topic}" for topic in TOPICS],
    ]
    loss = ranking_loss(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)

    values = []
    for _ in range(steps):
        sentence_features = [model.preprocess(sentences) for sentences in columns]
        value = loss(sentence_features, labels=None)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    return values, model


if __name__ == "__main__":
    print("loss", *(f"{value:.4f}" for value in main()[0]))
