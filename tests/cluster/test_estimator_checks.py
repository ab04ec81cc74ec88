"""scikit-learn's own checks of estimators, and its tools that take them."""

import numpy as np
import pytest
from cluster_data import blobs
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from cmx_fast.cluster import KMeans, MiniBatchKMeans

LEFT_OUT = {
    f"check_sample_weight_equivalence_on_{kind}_data": "random starts differ with the order of the rows, as "
    "scikit-learn's own do, which leave this check out too"
    for kind in ("dense", "sparse")
}


@pytest.mark.filterwarnings("ignore")
@parametrize_with_checks(
    [KMeans(n_clusters=2, random_state=0), MiniBatchKMeans(n_clusters=2, random_state=0)],
    expected_failed_checks=lambda estimator: LEFT_OUT,
)
def test_scikit_learns_checks(estimator, check):
    check(estimator)


def test_pipeline_and_search():
    x = blobs(200, components=4)
    pipeline = make_pipeline(StandardScaler(), KMeans(4, random_state=0)).fit(x)
    assert (pipeline.predict(x) == pipeline[-1].labels_).all()
    search = GridSearchCV(KMeans(random_state=0), {"n_clusters": [1, 4]}, cv=2).fit(x)
    assert search.best_params_ == {"n_clusters": 4}


def test_clone_and_repr_show_what_was_set():
    estimator = MiniBatchKMeans(3, init=np.zeros((3, 2)), tol=0.5)
    copy = clone(estimator)
    assert copy is not estimator and repr(copy) == repr(estimator)
    assert repr(KMeans(8, metric="cosine")) == "KMeans(metric='cosine')"
    with pytest.raises(ValueError, match="Invalid parameter 'k' for KMeans; valid are"):
        KMeans().set_params(k=3)
