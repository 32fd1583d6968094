"""Convert one JSON file per run into one JSONL file per table; to be deleted when it has run."""

import json
import re
import shlex
import sys
from pathlib import Path

FLOW = ("flow_steps", "noise_scale", "velocity_scale", "include_time", "include_previous_action")
NO_EFFECT = {
    "df-dir": (), "df-div": ("lam",), "fql": ("sampling_steps",),
    "ifql": ("sampling_steps", "learning_rate"), "rql": (),
    "iql": ("behavior_learning_rate", "behavior_steps", "path"),
    "rebrac": ("behavior_learning_rate", "behavior_steps", "path"), "flow-bc": ("gamma",),
}


def command(text):
    words, out, i = shlex.split(text), [], 0
    while i < len(words):
        if words[i] != "--set":
            out.append(words[i])
            i += 1
            continue
        i += 1
        while i < len(words) and not words[i].startswith("--"):
            name, value = words[i].split("=", 1)
            option = "--" + name.replace("_", "-")
            if value == "True":
                out.append(option)
            elif value.startswith("["):
                out += [option, *re.findall(r"\d+", value)]
            else:
                out += [option, value]
            i += 1
    return shlex.join(out)


def convert(old):
    new = dict(old)
    arguments, given = new.pop("arguments"), new.pop("hyperparameters", None)
    spec = new.pop("spec", {}) | {"flow_steps": new.pop("flow_steps")}
    ending = {name: new.pop(name) for name in ("command", "versions")}
    if given is None:
        spec |= {name: arguments[name] for name in arguments if name in FLOW}
        config = {name: v for name, v in arguments.items() if name not in FLOW}
    else:
        given = dict(given)
        arch = given.pop("policy_kwargs").get("net_arch", [256, 256, 256])
        dropped = ("compile", "seed", *NO_EFFECT[old["algorithm"]])
        config = {name: v for name, v in given.items() if name not in dropped} | {"net_arch": arch}
    new["flow"] = {name: spec[name] for name in FLOW if name in spec}
    new["config"] = config
    return new | {"command": command(ending["command"]), "versions": ending["versions"]}


def check(old, new):
    """Everything that the old file says is in the new row."""
    old, new = dict(old), dict(new)
    flow, config = new.pop("flow"), new.pop("config")
    assert new.pop("command") == command(old["command"])
    for name in new:
        if name != "versions":
            assert json.dumps(old[name]) == json.dumps(new[name]), name
    assert old["versions"] == new["versions"] and old["flow_steps"] == flow["flow_steps"]
    assert set(old) - set(new) <= {"arguments", "hyperparameters", "spec", "command", "flow_steps"}
    for name, value in old["arguments"].items():
        assert (flow if name in FLOW else config)[name] == value, name
    if "spec" in old:
        assert all(flow[name] == old["spec"][name] for name in FLOW) and len(flow) == len(FLOW)
        for name, value in old["hyperparameters"].items():
            if name == "policy_kwargs":
                assert config["net_arch"] == value.get("net_arch", [256, 256, 256])
            elif name not in ("compile", "seed", *NO_EFFECT[old["algorithm"]]):
                assert config[name] == value
    else:
        assert len(config) + len(flow) - ("flow_steps" not in old["arguments"]) == len(old["arguments"])


def order(row):
    return row["task"], row["source"], row["dataset_id"], row["label"], row["seed"]


def write(path, rows):
    path.write_text("".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows))


def main():
    total = 0
    for folder in [Path("results/main"), *sorted(Path("benchmarks/results").iterdir())]:
        old = [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]
        path = Path("results") / f"{folder.name}.jsonl"
        write(path, sorted((convert(one) for one in old), key=order))
        rows = {order(row): row for row in map(json.loads, path.read_text().splitlines())}
        assert len(rows) == len(old)
        for one in old:
            check(one, rows[order(one)])
        total += len(old)
        print(path, len(old), "rows equal their files")
    print(total, "in all")
    recorded = Path("benchmarks/recorded")
    for folder in ("mechanism", "few_steps"):
        files = sorted((recorded / folder).glob("*.json"))
        rows = [{"run": file.stem} | json.loads(file.read_text()) for file in files]
        for row in rows:
            if "command" in row:
                row["command"] = command(row["command"])
        path = Path("results/recorded") / f"{folder}.jsonl"
        write(path, rows)
        for file, line in zip(files, path.read_text().splitlines(), strict=True):
            old, new = json.loads(file.read_text()), json.loads(line)
            assert new.pop("run") == file.stem
            assert {**new, "command": 0} == {**old, "command": 0}
        print(path, len(rows), "rows equal their files")
    stored = json.loads((recorded / "modes.json").read_text())
    rows = [{"part": "shared", **stored["shared"]}]
    rows += [{"part": part, **row} for part in ("search", "runs") for row in stored[part]]
    write(Path("results/recorded/modes.jsonl"), rows)
    lines = [json.loads(line) for line in Path("results/recorded/modes.jsonl").read_text().splitlines()]
    back = {"search": [], "runs": []}
    for row in lines:
        part = row.pop("part")
        if part == "shared":
            back[part] = row
        else:
            back[part].append(row)
    assert back == stored
    print("modes", len(lines), "rows equal the file")


main()
