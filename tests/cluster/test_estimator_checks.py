"""scikit-learn's own checks of what calls itself an estimator."""

import pytest
from sklearn.base import BaseEstimator, ClusterMixin, TransformerMixin
from sklearn.utils.estimator_checks import parametrize_with_checks

from cmx_fast.cluster import KMeans, MiniBatchKMeans

# What scikit-learn wants of its own classes and ours do differently on purpose.
LEFT_OUT = {
    "check_estimators_unfitted": "wants scikit-learn's own NotFittedError, which would need scikit-learn",
    "check_sample_weight_equivalence_on_dense_data": "random starts differ with the number of rows",
}


class CheckedKMeans(TransformerMixin, ClusterMixin, KMeans, BaseEstimator):
    """The class as scikit-learn's tools see it: its tags come from scikit-learn's own mixins."""


class CheckedMiniBatchKMeans(TransformerMixin, ClusterMixin, MiniBatchKMeans, BaseEstimator):
    """As above."""


@pytest.mark.filterwarnings("ignore")
@parametrize_with_checks(
    [CheckedKMeans(n_clusters=2, random_state=0), CheckedMiniBatchKMeans(n_clusters=2, random_state=0)],
    expected_failed_checks=lambda estimator: LEFT_OUT,
)
def test_scikit_learns_checks(estimator, check):
    check(estimator)
