import pytest

import nsvq.quantizers
from nsvq.quantizers import Quantizer

EXPORTED = [getattr(nsvq.quantizers, name) for name in nsvq.quantizers.__all__]
QUANTIZERS = [
    item for item in EXPORTED if isinstance(item, type) and issubclass(item, Quantizer) and item is not Quantizer
]


@pytest.fixture(params=QUANTIZERS, ids=lambda quantizer: quantizer.__name__)
def quantizer_class(request):
    """Every exported quantizer in turn."""
    return request.param
