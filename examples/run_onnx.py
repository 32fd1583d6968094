"""An exported policy plays Hopper: onnxruntime, NumPy and Gymnasium, without torch or flowmdp.

    flowmdp export runs/hopper-medium/df-div-seed0 --out policy.onnx
    python examples/run_onnx.py policy.onnx

An agent that its paper evaluates without noise (`acts_at_mean` in the file's metadata) gets zeros.
"""

import sys

import gymnasium as gym
import numpy as np
import onnxruntime


def main(path: str, seed: int = 0) -> float:
    """Returns the return of one episode."""
    policy, env = onnxruntime.InferenceSession(path), gym.make("Hopper-v5")
    rng, done, total = np.random.default_rng(seed), False, 0.0
    observation, _ = env.reset(seed=seed)
    while not done:
        noise = rng.standard_normal((1, 3), np.float32)
        inputs = {"observations": observation[None].astype(np.float32), "noise": noise}
        (actions,) = policy.run(None, inputs)
        observation, reward, terminated, truncated, _ = env.step(actions[0])
        total, done = total + float(reward), terminated or truncated
    print(f"return: {total:.0f}")
    return total


if __name__ == "__main__":
    main(sys.argv[1])
