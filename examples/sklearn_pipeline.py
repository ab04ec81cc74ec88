"""k-means in a scikit-learn pipeline, as a transformer before a classifier and with named columns."""

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from cmx_fast.cluster import (
    KMeans,
    MiniBatchKMeans,
)  # was: from sklearn.cluster import KMeans, MiniBatchKMeans


def main(kmeans=KMeans, mini_batch_kmeans=MiniBatchKMeans):
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=300)
    x = (rng.normal(size=(3, 5))[labels] * 4 + rng.normal(size=(300, 5))).astype(np.float32)

    clusters = make_pipeline(
        StandardScaler(), kmeans(3, n_init=4, random_state=0, copy_x=False, algorithm="elkan")
    ).fit(x)
    distances = clusters.set_output(transform="default").transform(x)

    search = GridSearchCV(
        make_pipeline(StandardScaler(), mini_batch_kmeans(random_state=0), LogisticRegression()),
        {"minibatchkmeans__n_clusters": [2, 6]},
        cv=3,
    ).fit(x, labels)
    return clusters, distances, search.best_score_


if __name__ == "__main__":
    clusters, distances, score = main()
    print(dict(zip(clusters.get_feature_names_out(), distances[0].round(2), strict=True)), f"{score:.3f}")
