# SPDX-License-Identifier: Apache-2.0
"""What goes to another device and comes back, on a machine that has none: tensors that only say that they are there."""

import pytest
import torch
from torch.overrides import TorchFunctionMode

from moored.cli import main
from moored.ops import projection
from moored.repairs.baselines import DropModules
from moored.repairs.csu_lora import CSULoRA
from moored.repairs.engine import repair
from moored.repairs.lox_repair import LoXRepair
from moored.repairs.safe_lora import SafeLoRA
from moored.repairs.safe_merge import SafeMERGE
from moored.repairs.task_arithmetic import TaskArithmetic
from repairs.repair_models import weights

FAR, NEAR = torch.device("cuda"), torch.device("cpu")
DEVICE = torch.Tensor.device.__get__
PRODUCTS = (torch.Tensor.matmul, torch.Tensor.__matmul__, torch.Tensor.addmm_)


def place_of(value):
    """Where a tensor says it is."""
    return getattr(value, "pretended", NEAR)


class PretendedDevice(TorchFunctionMode):
    """Tensors sent to FAR are marked and stay where they are; an operation on both kinds is an error, as on a GPU."""

    def __init__(self):
        """Nothing is far yet."""
        super().__init__()
        self.products = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        """Follow the marks."""
        kwargs = dict(kwargs or {})
        if func is DEVICE:
            return place_of(args[0])
        if func in (torch.Tensor.to, torch.Tensor.cpu):
            return self._moved(func, args, kwargs)
        wanted = kwargs.pop("device", None)
        inside = [x for arg in args for x in (arg if isinstance(arg, list | tuple) else [arg])]
        found = {place_of(x) for x in (*inside, *kwargs.values()) if isinstance(x, torch.Tensor) and x.dim()}
        assert len(found) < 2 or func is torch.Tensor.copy_, f"{func} on tensors of two devices"
        place = torch.device(wanted) if wanted is not None else found.pop() if len(found) == 1 else place_of(args[0])
        self.products += place == FAR and func in PRODUCTS
        return self._marked(func(*args, **kwargs), place)

    def _moved(self, func, args, kwargs):
        own, rest = args[0], args[1:]
        if func is torch.Tensor.cpu:
            return own if place_of(own) == NEAR else self._marked(own.clone(), NEAR)
        target = place_of(own)
        for value in (*rest, *kwargs.values()):
            if isinstance(value, torch.Tensor):
                target = place_of(value)
            elif isinstance(value, torch.device | str):
                target = torch.device(value)
        types = [value.dtype if isinstance(value, torch.Tensor) else value for value in rest]
        types = [value for value in types if isinstance(value, torch.dtype)]
        moved = func(own, types[0]) if types else own
        if target == place_of(own):
            return self._marked(moved, target)
        return self._marked(moved.clone() if moved is own else moved, target)

    def _marked(self, value, place):
        if isinstance(value, torch.Tensor):
            value.pretended = place
        elif isinstance(value, tuple | list):
            for part in value:
                self._marked(part, place)
        return value


CASES = [
    (SafeLoRA(fraction=1.0), False),
    (SafeLoRA(fraction=1.0), True),
    (SafeLoRA(fraction=1.0, rank=4), False),
    (SafeLoRA(fraction=1.0, ridge=0.3), False),
    (SafeLoRA(fraction=1.0, scale_free=True, renorm="match_spectral"), False),
    (CSULoRA(rank=4), False),
    (CSULoRA(rank=4, sides="both"), False),
    (CSULoRA(rank=4, sides="both"), True),
    (LoXRepair(k=2), False),
    (LoXRepair(k=2), True),
    (TaskArithmetic(), True),
    (SafeMERGE(), False),
    (DropModules(k=3, by="cosine"), False),
]


@pytest.mark.parametrize(
    ("method", "merge"), CASES, ids=[f"{type(method).__name__}-{n}" for n, (method, _) in enumerate(CASES)]
)
def test_devices_are_not_mixed_and_results_come_back(method, merge, trio, tmp_path, monkeypatch):
    roles = {"aligned": trio.aligned, "base": trio.base, "merge": merge}
    roles |= {"safe": trio.safe} if isinstance(method, SafeMERGE) else {}
    repair(trio.adapter, method, out=tmp_path / "here", device="cpu", **roles)
    monkeypatch.setattr("moored.repairs.engine.device_for", lambda name, who: FAR)
    monkeypatch.setattr(projection, "FAR_BLOCK", 64)
    with PretendedDevice() as there:
        report = repair(trio.adapter, method, out=tmp_path / "there", **roles)
    assert report.device == "cuda"
    assert there.products or isinstance(method, TaskArithmetic)
    here, far = weights(tmp_path / "here"), weights(tmp_path / "there")
    for key, value in here.items():
        torch.testing.assert_close(far[key], value, rtol=0, atol=1e-6)


def test_a_device_that_is_not_there(trio, tmp_path, capsys):
    words = ["repair", str(trio.adapter), "--method", "scale_adapter", "--out", str(tmp_path / "out")]
    assert main([*words, "--device", "meta"]) == 2
    assert "`device` of repair must be a device of this machine (cpu" in capsys.readouterr().err
    assert main([*words, "--device", "cpu"]) == 0
