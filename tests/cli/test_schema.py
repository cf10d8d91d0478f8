"""`arcloop schema`: JSON schemas that accept all files of conf/ and refuse faults."""

import fnmatch
import json

import jsonschema
import pytest
from omegaconf import OmegaConf

from arcloop.cli.main import main
from arcloop.config.files import bundled, choices_of, config_groups

FILES = [
    pytest.param(group, file, id=f"{group}={choice}")
    for group in config_groups()
    for choice, file in choices_of(group).items()
] + [pytest.param("config", bundled("conf") / "config.yaml", id="config")]


def schema_of(project, group):
    text = (project / f".arcloop/schemas/{group.replace('/', '-')}.json").read_text()
    schema = json.loads(text)
    jsonschema.Draft7Validator.check_schema(schema)
    return schema


def faults(project, group, content):
    validator = jsonschema.Draft7Validator(schema_of(project, group))
    plain = OmegaConf.to_container(OmegaConf.create(content), resolve=False)
    return [error.message for error in validator.iter_errors(plain)]


@pytest.mark.parametrize(("group", "file"), FILES)
def test_every_file_of_arcloop_is_valid(new_project, group, file):
    assert faults(new_project, group, file.read_text()) == []


def test_every_file_of_a_new_project_is_valid_and_has_a_schema(new_project):
    settings = json.loads((new_project / ".vscode/settings.json").read_text())["yaml.schemas"]
    files = list((new_project / "conf").rglob("*.yaml"))
    for file in files:
        name = file.relative_to(new_project).as_posix()
        (schema,) = [s for s, pattern in settings.items() if fnmatch.fnmatch(name, pattern)]
        assert (new_project / schema).is_file()
        assert faults(new_project, file.parent.name, file.read_text()) == []
    assert len(files) == 4


@pytest.mark.parametrize(
    ("group", "content", "message"),
    [
        ("head", "defaults: [arcface]\nmargn: 1", "'margn' was unexpected"),
        ("head", "_target_: shop.heads.RampedArcFace\nramp_frm: 1", "'ramp_frm' was unexpected"),
        ("head", "_target_: arcloop.models.ArcFace\nmargin: 7", "7 is not valid"),
        ("head", "defaults: [arcfac]", "'arcfac' is not valid"),
        ("experiment", "maxepochs: 3", "'maxepochs' was unexpected"),
        ("experiment", "trainer: {maxepochs: 3}", "'maxepochs' was unexpected"),
        ("experiment", "loader: {batch_size: abc}", "'abc' is not valid"),
        ("experiment", "evaluate: {gate: {use: guess}}", "'guess' is not valid"),
        ("experiment", "defaults: [{override /hed: arcface}]", "is not valid"),
        ("experiment", "defaults: [{override /head: arcfac}]", "is not valid"),
        ("deploy", "defaults: [local]\nkeepp: 3", "'keepp' was unexpected"),
        ("config", "resum: auto", "'resum' was unexpected"),
    ],
)
def test_a_fault_is_refused(new_project, group, content, message):
    (found,) = faults(new_project, group, content)
    assert message in found


@pytest.mark.parametrize(
    ("group", "content"),
    [
        ("experiment", "defaults: [images, {override /head: shop_head}]\nhead: {ramp_from: 0.1}"),
        ("experiment", "head: {margin: '${head_scale}'}\nresume: true\nhydra: {verbose: true}"),
        ("experiment", "callbacks: {own: {_target_: a.b, c: 1}, evaluate: null}"),
        ("head", "_target_: shop.heads.Another\nany: 1"),
        ("launcher", "launcher: {own: 1}"),
    ],
)
def test_valid_contents_are_accepted(new_project, group, content):
    assert faults(new_project, group, content) == []


def test_keys_have_descriptions_and_groups_their_choices(new_project):
    experiment = schema_of(new_project, "experiment")["properties"]
    assert (
        "Images per training batch"
        in experiment["loader"]["properties"]["batch_size"]["description"]
    )
    assert "shop_head" in json.dumps(experiment["defaults"])


def test_schemas_of_another_folder_are_those_of_arcloop(in_tmp, capsys):
    assert main(["schema", "out"]) == 0
    assert "wrote" in capsys.readouterr().out
    names = {group.replace("/", "-") for group in config_groups()} | {"config"}
    assert {file.stem for file in (in_tmp / "out").iterdir()} == names
