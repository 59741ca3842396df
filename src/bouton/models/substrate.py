"""An associative graph as a language model: local rules, no gradients (``bouton.substrate``).

Each of the last ``positions`` tokens activates a node of its own for its distance, and each context of two and more
tokens that came again activates an assembly node. The score of a next token is its resting potential, the logarithm of
how often it was seen, plus the weights of the edges from what is active; p is their softmax. A step of learning changes
the edges from active nodes by the surprise, ``dw = eta ([token] - p)``. Edges and assemblies grow where something was
seen ``least`` times.

Source: the delta rule (Widrow and Hoff 1960) with the softmax's error; a maximum-entropy model of n-grams (Rosenfeld
1996) trained online.
"""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bouton import substrate
from bouton.data.packing import IGNORED
from bouton.errors import ConfigError, SocketError
from bouton.mechanisms.base import Mechanism
from bouton.mechanisms.parameters import Params, choice, integer, real
from bouton.mechanisms.vitals import Vitals
from bouton.models.body import Body
from bouton.models.growth import Directory, Keys, Sketch
from bouton.models.initialize import Draw
from bouton.models.labels import NUM_LABELS_DOC
from bouton.models.sequences import check_tokens, positions_of
from bouton.models.sockets import State

if TYPE_CHECKING:
    from bouton.mechanisms.neuromod import Neuromod

RELATION = "predicts"
_GRAPH, _COUNTS, _PAIRS, _CONTEXTS, _KEYS, _NODES, _STEPS = (
    "graph", "counts", "seen_pairs", "seen_contexts", "assembly_keys", "assembly_nodes", "learned_steps",
)  # fmt: skip
_BDNF, _TROPHIN = "bdnf", "neurotrophin"


@dataclass(frozen=True)
class SubstrateConfig(Params):
    """Fields of :class:`Substrate`. ``model.<field>`` in the configuration."""

    vocab_size: int = integer(257, "number of tokens in the vocabulary", low=1)
    num_labels: int | None = integer(None, NUM_LABELS_DOC, low=2)
    positions: int = integer(4, "last tokens with a node for each distance", unit="tokens", low=1, high=64)
    assemblies: int = integer(3, "longest context with a node of its own; 1: none", unit="tokens", low=1, high=8)
    least: int = integer(2, "times that a pair or a context must be seen to get an edge or a node", low=1, high=255)
    grow_steps: int | None = integer(None, "optimizer steps in which it grows; null: all", unit="steps", low=0)
    eta: float = real(0.1, "rate of learning, times the schedule", low=0, low_open=True, scale="log")
    rule: str = choice("surprise", ("surprise", "perceptron"), "error: [token] - p, or [token] - [best guess]")
    clip: float = real(20.0, "largest magnitude of a weight", low=0, low_open=True)
    batch: int = integer(128, "pairs for which the weights stand still", low=1)
    max_seq_len: int = integer(256, "longest text of public benchmarks; none is too long for the body", low=1)

    def check(self) -> None:
        if (self.vocab_size + 1) ** self.assemblies >= 2**63:
            raise ConfigError(
                f"model.assemblies = {self.assemblies} is not valid: with {self.vocab_size} tokens at most "
                f"{int(62 / math.log2(self.vocab_size + 1))}"
            )


class Substrate(Body):
    """See the module. It computes on the CPU in float32, wherever its parameter lies.

    Attributes:
        graph: nodes 0 .. answers - 1 are the answers, then come the tokens at each distance, then the assemblies.
        rest: (answers,) the resting potentials, which the graph holds as biases.
    """

    Config = SubstrateConfig
    learns_locally = True
    variable_state = (_GRAPH, _KEYS, _NODES)
    reports_vitals = True

    def __init__(self, config: SubstrateConfig) -> None:
        super().__init__()
        self.config = config
        self.num_labels = config.num_labels
        self.vocab_size, self.max_seq_len = config.vocab_size, config.max_seq_len
        self.hidden_size, self.num_layers = config.positions, 1
        self.answers = config.num_labels or config.vocab_size
        self.reach = max(config.positions, config.assemblies)
        self.rest = nn.Parameter(torch.empty(self.answers), requires_grad=False)
        self.pairs, self.contexts_seen = Sketch(), Sketch()
        self.counts = np.zeros(self.answers, np.int64)
        self.learned_steps = 0
        self.neuromod: Neuromod | None = None
        self._usual: float | None = None  # mean surprise of late, of neuromod
        self.trophin: substrate.Neurotrophin | None = None  # of bdnf
        self._take(substrate.Graph(self.answers + config.positions * config.vocab_size), Directory())

    def initialize_parameters(self, draw: Draw) -> None:
        draw.constant(self.rest, -math.log(self.answers))

    def _take(self, graph: substrate.Graph, assemblies: Directory) -> None:
        """Go on with this graph."""
        self.graph, self.assemblies = graph, assemblies
        self.readout = substrate.Readout(graph, RELATION, 0, self.answers, threads=0)
        sources, targets, _ = graph.edge_arrays(RELATION)
        self._edges = Directory(*(2 * [np.sort(sources.astype(np.int64) << 32 | targets)]))
        self._rested = -1  # version of `rest` that the graph holds

    # -- what is active ------------------------------------------------------------------------------------------

    def active(self, tokens: Tensor, state: State | None, starts: Tensor | None) -> tuple[Keys, Keys, State]:
        """Active nodes of every token (B, T, n), -1 where there are fewer; the keys of its contexts of 2, 3, ... tokens
        (B, T, assemblies - 1), -1 where the document is younger; and the state."""
        check_tokens(tokens, state, starts, None)
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= self.vocab_size:
            raise ValueError(
                f"tokens holds the id {low if low < 0 else high}, but this body's ids go from 0 to "
                f"{self.vocab_size - 1} (model.vocab_size = {self.vocab_size})"
            )
        c, batch, length = self.config, *tokens.shape
        positions = positions_of(tokens, None if state is None else state["position"], starts)
        recent = tokens.new_full((batch, self.reach - 1), -1) if state is None else state["recent"]
        padded = torch.cat((recent, tokens), dim=1)
        after = {"position": positions[:, -1] + 1, "recent": padded[:, length:]}
        words, age = padded.cpu().numpy().astype(np.int64), positions.cpu().numpy()
        back = np.stack([words[:, self.reach - 1 - k :][:, :length] for k in range(self.reach)], axis=-1)
        back[age[..., None] < np.arange(self.reach)] = -1
        near = back[..., : c.positions]
        nodes = np.where(near >= 0, self.answers + np.arange(c.positions) * self.vocab_size + near, -1)
        key = back[..., 0] + 1
        keys = np.full((batch, length, c.assemblies - 1), -1, np.int64)
        for n in range(1, c.assemblies):
            key = key + (back[..., n] + 1) * (self.vocab_size + 1) ** n
            keys[..., n - 1] = np.where(back[..., n] >= 0, key, -1)
        return nodes, keys, after

    def forward(
        self,
        tokens: Tensor,
        state: State | None = None,
        *,
        starts: Tensor | None = None,
        samples: Tensor | None = None,
        vitals: Vitals | None = None,
    ) -> tuple[Tensor, State]:
        nodes, keys, after = self.active(tokens, state, starts)
        self._settle()
        contexts = np.concatenate((nodes, self.assemblies.find(keys)), axis=-1)
        scores = self.readout.scores(contexts.reshape(-1, contexts.shape[-1]))
        if vitals is not None:
            vitals.add("substrate", "edges", float(self.graph.edges), 0)
            vitals.add("substrate", "assemblies", float(len(self.assemblies)), 0)
            vitals.add("substrate", "active", float((contexts >= 0).sum(axis=-1).mean()), 0)
            if self.trophin is not None:
                expected = float(self.rest.detach().double().exp().cpu().numpy() @ self.trophin.level)
                vitals.add(_BDNF, "gain", 1.0 + self.trophin.gamma * expected, 0)
                vitals.add(_BDNF, "saturated", float(self.trophin.most <= 1.0), 0)
            self.report_vitals(vitals)
        logits = torch.from_numpy(scores).reshape(*tokens.shape, self.answers)
        return logits.to(tokens.device), after

    def _settle(self) -> None:
        """Let the graph rest where ``rest`` says, if that was changed."""
        if self.rest._version != self._rested:
            self.graph.set(np.arange(self.answers), bias=self.rest.detach().float().cpu().numpy())
            self._rested = self.rest._version

    # -- learning ------------------------------------------------------------------------------------------------

    def learn(self, tokens: Tensor, targets: Tensor, starts: Tensor | None, eta: float) -> tuple[float, int]:
        """One step of learning on rows of a batch, all (B, T); targets of -100 are left out.

        Returns:
            The summed surprise in nats, of each pair before its mini-batch, and how many pairs there were.
        """
        nodes, keys, _ = self.active(tokens, None, starts)
        wanted = targets.cpu().numpy()
        kept = wanted != IGNORED
        nodes, keys, answers = nodes[kept], keys[kept], wanted[kept].astype(np.int64)
        grows = self.config.grow_steps is None or self.learned_steps < self.config.grow_steps
        self.learned_steps += 1
        if not len(answers):
            return 0.0, 0
        if grows:
            self._form(keys)
        contexts = np.concatenate((nodes, self.assemblies.find(keys)), axis=-1)
        if grows:
            self._grow(contexts, answers)
        self._settle()
        total, size = 0.0, len(answers) if self.neuromod is None else self.config.batch
        for first in range(0, len(answers), size):
            part = slice(first, first + size)
            losses = self.readout.learn(
                contexts[part],
                answers[part],
                rule=self.config.rule,
                eta=eta * self._dopamine(contexts[part], answers[part]),
                clip=(-self.config.clip, self.config.clip),
                batch=self.config.batch,
                trophin=self.trophin,
            )
            total += float(losses.sum(dtype=np.float64))
        if grows:
            self._rest(answers)
        return total, len(answers)

    def _form(self, keys: Keys) -> None:
        """Nodes for contexts that have been seen often enough."""
        distinct, times = self.contexts_seen.add(keys[keys >= 0])
        new = distinct[(times >= self.config.least) & (self.assemblies.find(distinct) < 0)]
        if len(new):
            self.assemblies.add(new, np.asarray(self.graph.add(len(new)), np.int64))

    def _grow(self, contexts: Keys, answers: Keys) -> None:
        """Edges, which weigh nothing yet, for pairs that have been seen often enough."""
        pairs = (contexts << 32 | answers[:, None])[contexts >= 0]
        distinct, times = self.pairs.add(pairs)
        new = distinct[(times >= self.config.least) & (self._edges.find(distinct) < 0)]
        if len(new):
            self._edges.add(new, new)
            self.graph.connect(RELATION, new >> 32, new & 0xFFFFFFFF, 0.0)

    def _rest(self, answers: Keys) -> None:
        """Rest at how often each answer was seen until now."""
        self.counts += np.bincount(answers, minlength=self.answers)
        seen = torch.from_numpy(self.counts).double() + 1
        with torch.no_grad():
            self.rest.copy_((seen / seen.sum()).log())

    def _dopamine(self, contexts: Keys, answers: Keys) -> float:
        """Of neuromod: 1 + g_da tanh(surprise - what it was of late); 1 without it."""
        if self.neuromod is None:
            return 1.0
        surprise = float(self.readout.losses(contexts, answers).mean(dtype=np.float64))
        usual = surprise if self._usual is None else self._usual
        rho = math.exp(-len(answers) / self.neuromod.hp.tau_mean)
        self._usual = rho * usual + (1 - rho) * surprise
        gain: float = self.neuromod.hp.g_da
        return 1.0 + gain * math.tanh(surprise - usual)

    # -- mechanisms and costs ------------------------------------------------------------------------------------

    def plug(self, mechanisms: Sequence[Mechanism]) -> None:
        """``neuromod`` is heard by its dopamine, which multiplies the rate, and ``bdnf`` raises the rates of the
        answers that were right of late; a graph has no place for the others.

        Raises:
            SocketError: another mechanism.
        """
        for mechanism in mechanisms:
            if mechanism.name == "neuromod":
                self.neuromod = cast("Neuromod", mechanism)
            elif mechanism.name == _BDNF:
                hp = mechanism.hp
                if hp.gamma != 0:
                    self.trophin = substrate.Neurotrophin.of(self.answers, hp.gamma, hp.tau, hp.max)
            else:
                raise SocketError(
                    f"mechanism '{mechanism.name}' does not work on body 'substrate', which learns without gradients "
                    f"and has no sockets: bdnf and neuromod do, or none"
                )
            self.mechanisms[mechanism.name] = mechanism

    def num_parameters(self) -> int:
        """Edges and resting potentials."""
        return self.graph.edges + self.answers

    def __deepcopy__(self, memo: dict[int, Any]) -> Substrate:
        twin = Substrate(self.config)
        memo[id(self)] = twin
        twin.neuromod, twin.trophin = copy.deepcopy((self.neuromod, self.trophin), memo)
        twin.mechanisms = copy.deepcopy(self.mechanisms, memo)
        twin.load_state_dict(self.state_dict())
        return twin.train(self.training)

    # -- checkpoints ---------------------------------------------------------------------------------------------

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.rest.is_meta:
            return
        self._settle()
        with tempfile.TemporaryDirectory() as folder:
            substrate.save(self.graph, path := Path(folder) / "graph")
            content = path.read_bytes()
        arrays: dict[str, NDArray[Any]] = {
            _GRAPH: np.frombuffer(content, np.uint8),
            _COUNTS: self.counts,
            _PAIRS: self.pairs.counts,
            _CONTEXTS: self.contexts_seen.counts,
            _KEYS: self.assemblies.keys,
            _NODES: self.assemblies.numbers,
            _STEPS: np.array([self.learned_steps], np.int64),
            "usual_surprise": np.array([-1.0 if self._usual is None else self._usual]),
        }
        if self.trophin is not None:
            arrays[_TROPHIN] = self.trophin.level
        for name, array in arrays.items():
            destination[prefix + name] = torch.from_numpy(array.copy())

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        names = [_GRAPH, _COUNTS, _PAIRS, _CONTEXTS, _KEYS, _NODES, _STEPS, "usual_surprise"]
        if self.trophin is not None:
            names.append(_TROPHIN)
        held = {name: state_dict[prefix + name] for name in names if prefix + name in state_dict}
        missing_keys += [prefix + name for name in names if name not in held]
        rest = {key: value for key, value in state_dict.items() if key.removeprefix(prefix) not in names}
        super()._load_from_state_dict(rest, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
        if len(held) < len(names):
            return
        arrays = {name: tensor.cpu().numpy().copy() for name, tensor in held.items()}
        with tempfile.TemporaryDirectory() as folder:
            (path := Path(folder) / "graph").write_bytes(arrays[_GRAPH].tobytes())
            graph = substrate.open(path)
        self.counts, self.learned_steps = arrays[_COUNTS], int(arrays[_STEPS][0])
        self.pairs.counts, self.contexts_seen.counts = arrays[_PAIRS], arrays[_CONTEXTS]
        usual = float(arrays["usual_surprise"][0])
        self._usual = None if usual < 0 else usual
        if self.trophin is not None:
            self.trophin.level = arrays[_TROPHIN]
        self._take(graph, Directory(arrays[_KEYS], arrays[_NODES]))
