"""On-policy learning on whole chains: how they are collected, kept, saved; `FlowPPO` learns."""

from __future__ import annotations

from collections import deque
from dataclasses import asdict, replace
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize
from torch import Tensor

from flowmdp.agents.core import checkpoint
from flowmdp.agents.core.acting import Acting
from flowmdp.agents.core.batch import DeviceDataset, check_fit
from flowmdp.agents.core.chain_buffer import ChainBuffer, RewardScale
from flowmdp.agents.core.config import NetworkConfig
from flowmdp.agents.core.inputs import check_device, check_kind, check_kinds, shown
from flowmdp.agents.core.live import check_fits, check_whole, make_whole, naming_the_robot
from flowmdp.agents.core.log import Means
from flowmdp.agents.core.networks import Descent, EnsembleMlp, VelocityField
from flowmdp.agents.core.noisy_flow import NoisyFlowPolicy, StepNoise
from flowmdp.agents.core.randomness import check_seed, concrete, seeded
from flowmdp.agents.core.saving import Saving
from flowmdp.agents.core.threads import one_thread
from flowmdp.arguments import check_integers
from flowmdp.errors import ConfigurationError, RobotError, TrainingDivergedError
from flowmdp.mdp.spec import FlowSpec
from flowmdp.robot import RobotInterface
from flowmdp.whole_chain import whole_spaces

ROWS = 4096
"""Chains that are priced at a time, which bounds what that takes of memory."""
RUNNING, ENDED = "running", "ended"
"""Names of the robots' discounted returns so far, and of returns and lengths of their last
episodes, beside where the robots are."""
SB3 = (
    *("learning_rate", "n_steps", "batch_size", "n_epochs", "gamma", "gae_lambda", "clip_range"),
    *("ent_coef", "max_grad_norm", "target_kl"),
)
"""Hyper-parameters that SB3's PPO has too."""


class OnChains(Acting, Saving, PPO):
    """SB3's PPO around a `NoisyFlowPolicy`; a subclass names its config and trains."""

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"MlpPolicy": NoisyFlowPolicy}
    policy: NoisyFlowPolicy  # type: ignore[assignment]
    rollout_buffer: ChainBuffer
    own_behavior = _dataset = _reward_scale = replay_buffer = None  # what offline agents have
    parts, prepared, pretrain_updates, transitions = (), 0, 0, 0
    acts_at_mean = False
    goal: int | None = None
    """Robot steps at which `learn` ends, between two rollouts, whatever its timesteps; the log is
    by robot steps then."""

    def __init__(
        self,
        policy: str | type[NoisyFlowPolicy],
        env: Any,
        config: NetworkConfig | None = None,
        *,
        policy_kwargs: dict[str, Any] | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: torch.device | str = "auto",
        _init_setup_model: bool = True,
        **hyperparameters: Any,
    ) -> None:
        check_kinds(
            policy_kwargs=policy_kwargs,
            tensorboard_log=tensorboard_log,
            verbose="None" if verbose is None else verbose,
        )
        check_device(device)
        if not isinstance(config, self.config_class | None):
            raise ConfigurationError(
                f"config is {shown(config)}: pass a {self.config_class.__name__}, or name "
                "hyper-parameters, as in learning_rate=1e-4"
            )
        self.config = self.config_class.of({**(policy_kwargs or {}), **hyperparameters}, config)
        chosen: Any = self.policy_aliases.get(policy) if isinstance(policy, str) else policy
        if not (isinstance(chosen, type) and issubclass(chosen, NoisyFlowPolicy)):
            raise ConfigurationError(
                f"policy is {shown(policy)}: take MlpPolicy, or a NoisyFlowPolicy class"
            )
        if isinstance(env, str):
            env = make_whole(env, {})
        if env is not None or _init_setup_model:
            env, self.spec, self.robot = self._checked(env)
        policy_class: Any = chosen  # SB3 declares a class of its own
        ppo = {name: getattr(self.config, name) for name in SB3}
        if env is not None:  # fewer chains are one minibatch
            ppo["batch_size"] = min(self.config.batch_size, self.config.n_steps * env.num_envs)
        super().__init__(
            policy_class,
            env,
            **ppo,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            seed=concrete(seed),
            device=device,
            _init_setup_model=False,
        )
        if _init_setup_model:
            self._setup_model()

    def _checked(self, env: Any) -> tuple[VecEnv, FlowSpec, RobotInterface]:
        """The environment as a VecEnv, the flow that acts there, and the robot's spaces."""
        check_kind(env)
        env = self._wrap_env(env)
        spec, group = check_whole(env), self.config.group_size
        recorded = env.get_attr("settings", [0])[0].states == "dataset"
        if recorded and group is None:
            raise ConfigurationError(
                "states='dataset' has no robot to learn on: take states='env', or group_size=16 "
                "with reward='direction'"
            )
        if group is not None and not recorded:
            raise ConfigurationError(
                "group_size needs several chains from one state, to which no robot returns: make "
                "the environment with states='dataset' and reward='direction', or leave it out"
            )
        chains = self.config.n_steps * env.num_envs
        if chains < 2 or chains % (group or 1):
            raise ConfigurationError(
                f"a rollout has n_steps * n_envs = {chains} chains: make it at least 2, and a "
                "multiple of group_size"
            )
        own = ("flow_steps", "noise_scale", "include_time")
        chosen = {name: getattr(self.config, name) for name in own}
        spec = replace(spec, **{name: one for name, one in chosen.items() if one is not None})
        return env, spec, env.get_attr("robot", [0])[0]

    def _setup_model(self) -> None:
        """Make generators, networks and optimisers."""
        spec, config = self.spec, self.config
        self.generator, self.act_generator = (torch.Generator(self.device) for _ in range(2))
        self._data: DeviceDataset | None = None
        self.rollouts = self.robot_steps = 0
        self.means, self._episodes = Means(), {}
        self.saved = checkpoint.Registry()
        self.saved.generators |= {"learn": self.generator, "act": self.act_generator}
        for name in ("num_timesteps", "_n_updates", "rollouts", "robot_steps"):
            self.saved.count(name, self, name)
        widths = spec.context_dim, spec.action_dim
        with seeded(self.seed, self.device):
            self.policy = self.policy_class(  # type: ignore[assignment]
                self.observation_space,
                self.action_space,
                lambda _: 0.0,  # the optimisers are the algorithm's
                spec=spec,
                field=VelocityField(*widths, config.net_arch, include_time=spec.include_time),
                noise=StepNoise(*widths, spec.flow_steps, config.noise_bounds, config.learn_noise),
                generator=self.act_generator,
            ).to(self.device)
            arch = config.critic_arch
            self.critic_network = EnsembleMlp(widths[0], 1, arch, layer_norm=True).to(self.device)
        self.policy.origin = {"algorithm": self.name, "config": asdict(config), "behavior": None}
        self.reward_scale = RewardScale()
        self.actor_descent = Descent(self.policy, config.learning_rate, config.max_grad_norm)
        self.critic_descent = Descent(
            self.critic_network, config.critic_learning_rate, config.max_grad_norm
        )
        self.saved.modules |= {
            "policy": self.policy,
            "critic": self.critic_network,
            "reward_scale": self.reward_scale,
        }
        descents = {"actor": self.actor_descent, "critic": self.critic_descent}
        self.saved.optimizers |= {name: one.adam for name, one in descents.items()}
        self.set_random_seed(self.seed)

    def set_random_seed(self, seed: int | None = None) -> None:
        """Seed noise, minibatches, the action space and the environment's next reset; no others.

        Args:
            seed: In [0, 2**32); None changes nothing.
        """
        check_seed(seed)
        if seed is None:
            return
        for name, generator in self.saved.generators.items():
            generator.manual_seed(int(seed) + (name == "act"))
        self.action_space.seed(int(seed))
        if self.env is not None:
            self.env.seed(int(seed))

    def set_env(self, env: Any, force_reset: bool = True) -> None:
        """Go on with other robots of the same kind, as many as you like; episodes start anew.

        Raises:
            ConfigurationError: If it is no environment of whole actions.
            CheckpointError: If it is of another robot or chunk.
        """
        env, spec, robot = self._checked(env)
        check_fits("the agent", self, spec, robot)
        self.env, self.n_envs, self._last_obs = env, env.num_envs, None
        self._vec_normalize_env, self._data = unwrap_vec_normalize(env), None

    def _take_spec(self, manifest: dict[str, Any]) -> None:
        """Take the file's specification; its robot must be that of the environment."""
        env, self.env = self.env, None
        given = None if env is None else (self.spec, self.robot)
        super()._take_spec(manifest)
        self.observation_space, self.action_space = whole_spaces(self.spec)
        if env is not None and given is not None:
            check_fits("the checkpoint", self, *given)
            self.env, self.n_envs = env, env.num_envs

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = False,
    ) -> tuple[NDArray[Any], Any]:
        """Whole actions, of chunks chunks, in [-1, 1], for observations of the `ActionEnv`.

        Args:
            observation: Shape (context_dim,) or (n, context_dim).
            state: Returned as it is.
            episode_start: Without effect.
            deterministic: Start at x_0 = 0, without noise in the steps; else as it learns.

        Returns:
            Actions, (action_dim,) or (n, action_dim), and the state.

        Raises:
            ConfigurationError: For observations of another shape, or not finite.
        """
        return self.policy.predict(observation, state, episode_start, deterministic)

    # -- collecting -------------------------------------------------------------------------

    def learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "FlowPPO",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Self:
        """As SB3's; a timestep is an action or, with chunks, a chunk of one robot.

        Raises:
            ConfigurationError: If an argument is out of range, or there is no environment.
            RobotError: If a robot raises or answers NaN; the agent stays as it was before the
                rollout, and can be saved.
            TrainingDivergedError: If a weight is not finite.
        """
        check_integers(0, total_timesteps=total_timesteps)
        check_kinds(callback=callback, tb_log_name=tb_log_name)
        if self.env is None:
            raise ConfigurationError("there is no robot to learn on: load the agent with env=")
        self.rollout_buffer = ChainBuffer(
            self.n_steps,
            self.observation_space,
            self.action_space,
            device=self.device,
            gamma=self.gamma,
            gae_lambda=self.gae_lambda,
            n_envs=self.n_envs,
            flow_steps=self.spec.flow_steps,
        )
        if self._episodes and hasattr(self.env, "restore"):
            there, self._episodes = self._episodes, {}
            self.reward_scale.running, ended = there.pop(RUNNING), there.pop(ENDED)
            episodes = [{"r": paid, "l": int(steps)} for paid, steps in ended.tolist()]
            self.ep_info_buffer = deque(episodes, self._stats_window_size)
            self.ep_success_buffer = deque(maxlen=self._stats_window_size)
            self._last_obs = self.env.restore(there)
            self._last_episode_starts = np.zeros(self.n_envs, np.bool_)
        with one_thread():
            return super().learn(
                total_timesteps,
                callback,
                log_interval,
                tb_log_name,
                reset_num_timesteps,
                progress_bar,
            )

    def dump_logs(self, iteration: int = 0) -> None:
        """As SB3's; with a goal by steps of the robots, as it is."""
        timesteps = self.num_timesteps
        if self.goal is not None:
            self.num_timesteps = self.robot_steps
        super().dump_logs(iteration)
        self.num_timesteps = timesteps

    def _where(self) -> dict[str, NDArray[Any]]:
        """Where robots that can be brought back are, and how they did so far."""
        robots: Any = self.env
        if not hasattr(robots, "state") or self._last_obs is None:
            return self._episodes
        running, here = self.reward_scale.running, dict[str, NDArray[Any]](robots.state())
        here[RUNNING] = np.zeros(self.n_envs) if running is None else running
        ended = [(episode["r"], episode["l"]) for episode in self.ep_info_buffer or ()]
        return {**here, ENDED: np.array(ended, np.float64).reshape(-1, 2)}

    def collect_rollouts(
        self,
        env: VecEnv,
        callback: BaseCallback,
        rollout_buffer: Any,
        n_rollout_steps: int,
    ) -> bool:
        """Fill the buffer with chains, and estimate what they are worth.

        Args:
            env: The robots, or recorded states.
            callback: Called after every step.
            rollout_buffer: A `ChainBuffer`.
            n_rollout_steps: Actions, of chunks chunks, of every robot.

        Returns:
            Whether the callback lets learning go on.
        """
        self.policy.set_training_mode(False)
        done = self.num_timesteps, self._total_timesteps
        if self.goal is not None:
            done = self.robot_steps, self.goal
        self._update_current_progress_remaining(*done)
        self.policy.noise.level.fill_(self._current_progress_remaining)
        rollout_buffer.reset()
        callback.on_rollout_start()
        if self.goal is not None and self.robot_steps >= self.goal:
            return False
        play = self._play if self.config.group_size is None else self._play_groups
        if not play(env, callback, rollout_buffer):
            return False
        self.rollouts += 1
        self._price(rollout_buffer)
        callback.update_locals(locals())
        callback.on_rollout_end()
        return True

    def _play(self, env: VecEnv, callback: BaseCallback, buffer: ChainBuffer) -> bool:
        """One rollout on the robots; False where the callback stopped it."""
        policy = self.policy
        noise = policy.draw(buffer.buffer_size, env.num_envs, generator=self.generator)
        seen: Any = self._last_obs
        for drawn in noise:
            observations = seen
            contexts = policy.context(torch.as_tensor(observations, device=self.device))
            points = policy.chains(contexts, drawn).cpu().numpy()
            try:
                with naming_the_robot(env, self.robot_steps):
                    seen, rewards, dones, infos = env.step(points[:, -1].clip(-1, 1))
            except RobotError:
                self._last_obs = None  # whoever goes on resets
                raise
            self.num_timesteps += env.num_envs
            self.robot_steps += sum(info.get("executed_steps", 1) for info in infos)
            callback.update_locals(locals())
            if not callback.on_step():
                return False
            self._update_info_buffer(infos, dones)
            buffer.add_step(observations, points, rewards, dones, infos)
            self._last_obs = seen
        self.logger.record("time/robot_steps", self.robot_steps)
        return True

    def _price(self, buffer: ChainBuffer) -> None:
        """Likelihoods of the chains, and their advantages."""
        observations = self._flat(buffer.observations)
        chains = self._flat(buffer.chains)
        parts = zip(observations.split(ROWS), chains.split(ROWS), strict=True)
        with torch.no_grad():
            found = [self.policy.log_prob(self.policy.context(o), c)[0] for o, c in parts]
        buffer.chain_log_probs[:] = self._shaped(torch.cat(found), buffer)
        if self.config.group_size is not None:
            return
        deviation = self.reward_scale.update(buffer.rewards, buffer.discounts, buffer.dones)
        self.logger.record("train/reward_scale", deviation)
        buffer.rewards /= deviation
        buffer.values[:] = self._shaped(self._values(observations), buffer)
        if buffer.finals:
            finals = np.stack([observation for _, _, observation in buffer.finals])
            buffer.set_final_values(self._values(finals).cpu().numpy())
        buffer.estimate(self._values(self._last_obs).cpu().numpy())

    @torch.no_grad()
    def _values(self, observations: Any) -> Tensor:
        """V(s), shape (n,)."""
        tensor = torch.as_tensor(observations, device=self.device)
        return torch.cat([self.values(self.policy.context(rows)) for rows in tensor.split(ROWS)])

    def values(self, contexts: Tensor) -> Tensor:
        """The critic's V(s) in scaled reward units, shape (n,)."""
        values: Tensor = self.critic_network(contexts).squeeze((0, -1))
        return values

    def _flat(self, array: NDArray[Any]) -> Tensor:
        """An array of the buffer as a tensor of chains."""
        return torch.as_tensor(array, device=self.device).flatten(0, 1)

    def _shaped(self, values: Tensor, buffer: ChainBuffer) -> NDArray[Any]:
        """The inverse."""
        array = values.cpu().numpy()
        return array.reshape(buffer.buffer_size, buffer.n_envs, *array.shape[1:])

    # -- groups -----------------------------------------------------------------------------

    @property
    def data(self) -> DeviceDataset:
        """The recorded states."""
        if self._data is None:
            assert self.env is not None
            (dataset,) = self.env.get_attr("dataset", indices=[0])
            check_fit(dataset, self.spec)
            self._data = DeviceDataset(
                dataset, self.spec, self.policy.normalizer, None, self.device
            )
        return self._data

    def _play_groups(self, env: VecEnv, callback: BaseCallback, buffer: ChainBuffer) -> bool:
        """One rollout of groups of chains from recorded states; no step of the environment."""
        policy, group = self.policy, int(self.config.group_size)
        number = buffer.buffer_size * env.num_envs
        batch = self.data.sample(number // group, self.generator, cloning=True)
        contexts = batch.contexts.repeat_interleave(group, 0)
        points = policy.chains(contexts, policy.draw(number, generator=self.generator))
        states = policy.normalizer.inverse(contexts[:, : self.spec.observation_dim])
        actions = points[:, -1].clamp(-1, 1)
        asked = [one.cpu().numpy() for one in (states, actions)]
        (paid,) = env.env_method("values", *asked, indices=[0])
        values = np.asarray(paid, np.float32).reshape(-1, group)
        spread = values.std(1, keepdims=True)
        buffer.rewards[:] = values.reshape(buffer.rewards.shape)
        advantages = (values - values.mean(1, keepdims=True)) / (spread + 1e-6)
        buffer.advantages[:] = advantages.reshape(buffer.rewards.shape)
        seen = torch.cat([states, contexts[:, self.spec.observation_dim :]], 1)
        buffer.observations[:] = self._shaped(seen, buffer)
        buffer.chains[:] = self._shaped(points, buffer)
        self.logger.record("train/group_value", float(values.mean()))
        self.logger.record("train/group_spread", float(spread.mean()))
        for _ in range(buffer.buffer_size):
            self.num_timesteps += env.num_envs
            callback.update_locals(locals())
            if not callback.on_step():
                return False
        return True

    def _check_finite(self) -> None:
        """Raise TrainingDivergedError for weights that are not."""
        if name := checkpoint.first_not_finite(self.saved.weights()):
            raise TrainingDivergedError(
                f"training diverged after {self.num_timesteps} timesteps ({name} is not finite): "
                "take a smaller learning rate; what was saved before stays"
            )
