"""The process that turns a torch module into a `.tflite`: see `compression.lanes.torch_lane`."""

import sys
import warnings
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from cloud.errors import TaskError
from cloud.learning import torch_model
from cloud.learning.task import load_task
from compression.lanes import torch_lane as lane
from contract import tensors


def main(folder: Path) -> None:
    """Do what the folder's request says, and leave the model there."""
    request = msgspec.json.decode((folder / lane.REQUEST).read_bytes(), type=lane.Request)
    shown = tensors.load((folder / lane.SHOWN).read_bytes())["x"]
    module = torch_model.build(load_task(request.task), seed=0)
    torch_model.put(module, tensors.load((folder / lane.WEIGHTS).read_bytes()))
    made = _float(module, shown) if request.form == "float" else _int8(module, shown)
    made.export(str(folder / lane.MODEL))


def _float(module: Any, shown: np.ndarray) -> Any:
    import litert_torch
    import torch

    return litert_torch.convert(module, (torch.from_numpy(shown[:1]),))


def _int8(module: Any, shown: np.ndarray) -> Any:
    """PyTorch 2 export quantization: observe ranges, then quantize weights by channel and activations by tensor."""
    import litert_torch
    import torch
    from litert_torch.quantize import pt2e_quantizer, quant_config
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    config = pt2e_quantizer.get_symmetric_quantization_config(is_per_channel=True, is_dynamic=False)
    quantizer = pt2e_quantizer.PT2EQuantizer().set_global(config)
    sample = (torch.from_numpy(shown[:1]),)
    prepared = prepare_pt2e(torch.export.export(module, sample).module(), quantizer)
    for index in range(len(shown)):
        prepared(torch.from_numpy(shown[index : index + 1]))
    quantized = convert_pt2e(prepared, fold_quantize=False)
    return litert_torch.convert(quantized, sample, quant_config=quant_config.QuantConfig(pt2e_quantizer=quantizer))


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # torch and litert-torch warn of their own insides
    try:
        main(Path(sys.argv[1]))
    except ModuleNotFoundError as error:
        sys.exit(f"{error.name} is not installed: {lane.INSTALL}")
    except TaskError as error:
        sys.exit(str(error))
    except Exception as error:  # noqa: BLE001 whatever the converter raises is one line for the parent
        sys.exit(f"litert-torch refuses the module: {type(error).__name__}: {str(error).strip().splitlines()[0][:300]}")
