from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from bouton.errors import ConfigError, SocketError
from bouton.mechanisms import Mechanism, Params, choice, flag, integer, real
from bouton.models import Transformer, TransformerConfig, initialize

CONFIG = TransformerConfig(vocab_size=31, num_layers=2, hidden_size=16, num_heads=2)


@dataclass(frozen=True)
class SomeParams(Params):
    tau: float = real(6.0, "time constant", unit="tokens", low=0, low_open=True)
    rank: int = integer(4, "rank", low=1, high=8)
    rule: str = choice("min", ("min", "mul"), "rule")
    learn: bool = flag(False, "train it")
    bias: float | None = real(None, "bias")

    def check(self) -> None:
        if self.rule == "mul" and self.rank == 1:
            raise ConfigError("rank = 1 does not go with rule = mul")


class Double(nn.Module):
    def forward(self, x):
        return 2 * x


class First(Mechanism):
    name, summary, source, sockets, state = "first", "doubles", "none", ("activation",), "none"
    Params = SomeParams

    def plug(self, body):
        for socket in body.sockets("activation"):
            socket.plug(self, Double())


class Second(First):
    name = "second"


class Homeostat(Mechanism):
    """Organism state: a running mean of the activity, over all ranks and micro-batches."""

    name, summary, source, sockets, state = "homeostat", "keeps a mean", "none", (), "none"

    def __init__(self, params=None):
        super().__init__(params)
        self.organism_state("activity", (3,), 0.5)

    def plug(self, body):
        pass

    def update_organism(self, means):
        self.activity.copy_(means["activity"])


class TestParams:
    def test_values_are_converted(self):
        params = SomeParams.from_config({"tau": 3, "rank": 2.0, "bias": 1}, "mechanism.x")
        assert (params.tau, params.rank, params.bias) == (3.0, 2, 1.0)
        assert isinstance(params.rank, int)
        assert SomeParams().bias is None

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"tau": -3}, r"mechanism.x.tau = -3 is not valid: time constant, in tokens must be a number > 0"),
            ({"tau": True}, "a number > 0"),
            ({"tau": float("inf")}, "inf"),
            ({"rank": 9}, "an integer >= 1 and <= 8"),
            ({"rank": 2.5}, "2.5"),
            ({"rule": "max"}, "min or mul"),
            ({"learn": 1}, "true or false"),
            ({"taw": 1}, r"mechanism.x.taw is unknown: did you mean 'tau'\? known: bias, learn, rank, rule, tau"),
            ({"rule": "mul", "rank": 1}, "mechanism.x.rank = 1 does not go with"),
        ],
    )
    def test_bad_values_are_named(self, values, message):
        with pytest.raises(ConfigError, match=message):
            SomeParams.from_config(values, "mechanism.x")


class TestPlugging:
    def test_part_is_used(self):
        plain, doubled = (initialize(Transformer(CONFIG), 0) for _ in range(2))
        doubled.plug([First()])
        tokens = torch.arange(6)[None]
        assert not torch.equal(plain(tokens)[0], doubled(tokens)[0])
        assert list(doubled.mechanisms) == ["first"]

    def test_conflict_names_both_and_the_socket(self):
        with pytest.raises(SocketError, match="'first' and 'second' both need the exclusive socket 'activation'"):
            Transformer(CONFIG).plug([Second(), First()])

    def test_missing_refined_mechanism_and_signal(self):
        class Refiner(First):
            name, refines = "refiner", ("presyn",)

        class Listener(First):
            name, reads = "listener", ("dopamine",)

        order = []

        class Base(First):
            name, sockets = "zebra", ("activation",)

            def plug(self, body):
                order.append(self.name)

        class Finer(Base):
            name, refines, sockets = "apple", ("zebra",), ("signals",)

        class Finest(Base):
            name, refines, sockets = "aardvark", ("apple",), ("signals",)

        class Early(Base):
            name, sockets = "yak", ("signals",)

        Transformer(CONFIG).plug([Finest(), Finer(), Base(), Early()])
        assert order == ["yak", "zebra", "apple", "aardvark"]  # what refines comes after what it refines
        with pytest.raises(SocketError, match=r"refines 'presyn'.*mechanism=presyn\+refiner"):
            Transformer(CONFIG).plug([Refiner()])
        with pytest.raises(SocketError, match="reads the signal 'dopamine'"):
            Transformer(CONFIG).plug([Listener()])

    def test_missing_socket_is_named(self):
        with pytest.raises(SocketError, match="no socket 'encoder' here; it has activation"):
            Transformer(CONFIG).sockets("encoder")


class TestOrganismState:
    def test_sums_add_up_over_micro_batches_and_ranks(self):
        mechanism = Homeostat()
        mechanism.observe("activity", torch.tensor([1.0, 2.0, 3.0]), 2)
        mechanism.observe("activity", torch.tensor([1.0, 0.0, 3.0]), 2)
        mechanism.commit_observations(lambda sums: 2 * sums)  # another rank that saw the same
        assert mechanism.activity.tolist() == [0.5, 0.5, 1.5]
        mechanism.commit_observations(lambda sums: pytest.fail("nothing was observed since"))

    def test_is_restored_after_meta_construction(self):
        with torch.device("meta"):
            mechanism = Homeostat()
        mechanism.to_empty(device="cpu")
        initialize(mechanism, 0)
        assert mechanism.activity.tolist() == [0.5] * 3
