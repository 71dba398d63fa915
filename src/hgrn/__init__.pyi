# What a type checker and an editor see: the names that `__init__.py` resolves on first use.
from hgrn.errors import UserError as UserError
from hgrn.models import HGRNCache as HGRNCache
from hgrn.models import HGRNConfig as HGRNConfig
from hgrn.models import HGRNForCausalLM as HGRNForCausalLM
from hgrn.models import HGRNForImageClassification as HGRNForImageClassification
from hgrn.models import HGRNForSequenceClassification as HGRNForSequenceClassification
from hgrn.models import HGRNForSequencePairClassification as HGRNForSequencePairClassification
from hgrn.models import HGRNImageProcessor as HGRNImageProcessor
from hgrn.models import HGRNModel as HGRNModel
from hgrn.models import Session as Session
from hgrn.modules import GLU as GLU
from hgrn.modules import HGRN as HGRN
from hgrn.modules import HGRU as HGRU
from hgrn.modules import HGRN2Mixer as HGRN2Mixer
from hgrn.modules import HGRU2d as HGRU2d
from hgrn.modules import Mixer as Mixer
from hgrn.modules import Stepper as Stepper
from hgrn.modules import register_mixer as register_mixer
from hgrn.ops import available_engines as available_engines
from hgrn.ops import gated_scan as gated_scan
from hgrn.ops import gla_scan as gla_scan
from hgrn.ops import hgru_carry as hgru_carry
from hgrn.ops import hgru_scan as hgru_scan

__version__: str
