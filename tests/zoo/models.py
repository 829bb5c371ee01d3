"""The entries of the zoo by name: `ZOO`, which a sweep tries, and `EVERY`.

Enters: the lists. Leaves: the two tables. Separate because whoever runs the models needs to know one place.
"""

from __future__ import annotations

from tests.zoo.entry import ZooEntry
from tests.zoo.own_sequences import OWN_SEQUENCES
from tests.zoo.own_vision import OWN_VISION
from tests.zoo.timm_models import TIMM
from tests.zoo.torchvision_models import TORCHVISION
from tests.zoo.transformers_audio import TRANSFORMERS_AUDIO
from tests.zoo.transformers_mixed import TRANSFORMERS_MIXED
from tests.zoo.transformers_text import TRANSFORMERS_TEXT
from tests.zoo.transformers_vision import TRANSFORMERS_VISION

__all__ = ["EVERY", "LISTS", "RELATIVES", "ZOO"]

LISTS = (
    TIMM,
    TORCHVISION,
    TRANSFORMERS_TEXT,
    TRANSFORMERS_VISION,
    TRANSFORMERS_AUDIO,
    TRANSFORMERS_MIXED,
    OWN_VISION,
    OWN_SEQUENCES,
)

EVERY: dict[str, ZooEntry] = {name: entry for entries in LISTS for name, entry in entries.items()}
# Near relatives of other entries. Without them a sweep over 14 processes takes about seven minutes on a GPU.
# A window transformer of any height and width takes longer to export than a sweep allows one model.
RELATIVES = frozenset(
    """
    big_bird blenderbot botnet26t_256 coatnet_nano_rw_224 codegen cohere conditional_detr convbert convnextv2_atto
    crossvit_tiny_240 cs3darknet_focus_s dla46x_c dlinear dpn48b dpt dueling_dqn edgenext_xx_small
    efficientformer_l1 efficientnet_b0 efficientvit_b0 efficientvit_m0 electra esm esrgan eurobert falcon_mamba
    fastvit_t8 gcvit_xxtiny gemma glpn gmlp_ti16_224 googlenet gpt_neo gptj granite gru_forecaster hardcorenas_a
    hf_mobilevit hgnetv2_b0 hrnet_w18_small inception_v3 lambda_resnet26t led lraspp_mobilenet_v3_large lxmert
    m2m_100 maskformer maxvit_t mbart mnasnet0_5 mobilenetv2_035 mobilenetv4_conv_small mobileone_s0
    mobilevitv2_050 mpnet mpt n_beats nemotron nextvit_small olmo2 opt patchtst pegasus phi3 prophetnet qwen2
    qwen2_moe r2plus1d_18 rcan rdnet_tiny real_nvp recurrent_gemma regnet_x_400mf rembert repghostnet_050
    resmlp_12_224 resnetv2_50 roberta selecsls42 shufflenet_v2_x0_5 shvit_s1 skresnet18 smollm3 squeezebert
    squeezenet1_1 stablelm starcoder2 starnet_s1 swin_v2_t swin_t_of_any_size swinv2_cr_tiny_ns_224
    tab_transformer tiny_vit_5m_224 tresnet_m
    upernet visformer_tiny visual_bert vit_b_32 vit_mae_encoder vit_relpos_small_patch16_224
    vit_tiny_r_s16_p8_224 vitamin_small_224 wav2vec2_stable xception41p
    """.split()  # noqa: SIM905  # a list has a line for each name
)
ZOO: dict[str, ZooEntry] = {name: entry for name, entry in EVERY.items() if name not in RELATIVES}
