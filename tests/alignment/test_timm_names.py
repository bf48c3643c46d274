"""Names of timm that it does not know are refused with the nearest ones, by every part that takes one."""

import pytest

from simflow_plugin.alignment.classifier import TokenClassifier
from simflow_plugin.alignment.timm_encoders import TimmEncoder
from simflow_plugin.alignment.timm_names import check_timm_name
from simflow_plugin.contracts import DataContext
from simflow_plugin.errors import ConfigError, SimflowError
from simflow_plugin.evaluation.extractors import find_extractor_weights
from simflow_plugin.losses.timm_loss import TimmLoss, TimmLossOptions

TAG = r"but no weights of it tagged `lvd142x`\. Did you mean `vit_base_patch14_dinov2\.lvd142m`\?"
MODEL = r"timm has no model `vit_base_patch14_dino2`\. Did you mean .*vit_base_patch14_dinov2"


def encoder(name):
    TimmEncoder(TimmEncoder.Options(model=name), DataContext(64, "train"))


def extractor(name):
    find_extractor_weights(f"timm:{name}", None)


def loss(name):
    TimmLoss(TimmLossOptions(backbone=name, checkpoint="none.safetensors"))


def classifier(name):
    TokenClassifier({"model": name, "num_classes": 2, "img_size": 28})


@pytest.mark.parametrize("part", [encoder, extractor, loss, classifier])
@pytest.mark.parametrize(
    ("name", "message"), [("vit_base_patch14_dinov2.lvd142x", TAG), ("vit_base_patch14_dino2", MODEL)]
)
def test_unknown_name_is_refused_with_the_nearest(part, name, message):
    with pytest.raises(SimflowError, match=message):
        part(name)


def test_tag_of_a_model_without_published_weights_is_refused():
    check_timm_name("vit_tiny_patch16_384", "a.b")
    with pytest.raises(ConfigError, match=r"a\.b: .*`vit_medium_patch16_clip_224`, but no weights .* `x`"):
        check_timm_name("vit_medium_patch16_clip_224.x", "a.b")
