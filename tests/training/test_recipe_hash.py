"""A recipe's hash is that of its first release, whatever its keys are called: unfinished runs and cells stay valid."""

import pytest

from kauli.models.adapters.upgrade import RENAMED
from kauli.training.recipe import recipe_sha256
from kauli.training.recipe_file import load_recipe, recipe_names

# name -> with the shipped seed, without a seed, with seed 7; computed by the code before the keys were renamed
KNOWN = {
    "align-starter": (
        "565060170563524e798de5eb4ec4ebcdf0958bd94539a93311d4ebd349229af6",
        "06f76afe24d215bbc6912ba077a9193d4f89df20044768bf0571bb23e3bdf660",
        "6deded01db17214638e7a3881c2a8efa3f434ba6f23f49d970358e5e9eb9a410",
    ),
    "describe-am": (
        "593b83ab8b1786415a7660e46b8b3e9b925a45b88c57787519b468f6fe042bea",
        "3313e7b51b76130a6b5ab427d886e4fcc9b5d3326ed2262843733f36a698c3a7",
        "6dbae211cb89aac4e54a1a9bbe92e4ad2a07221953f6cc7c47a2003c6c4a7595",
    ),
    "describe-be": (
        "22f204e9af895cc6a9c34eb6c6bc9a26adf2cebe8043c71c30debfa5b85e035c",
        "4beb35399b55689831dc25eb2531abf6da09296cfa4f49f4a1c3703f6afcd04e",
        "1d33350935a90f305adb1f89747b3a22f039c83083af09aaeb65db0c50692cfc",
    ),
    "describe-be-fused": (
        "04487ed2eb7e19011d646927a07c6f89bcd910436a6a5db425cf7cc774d0cc64",
        "1b450970d65feee775ccf01225629c7e25766e7bf0ae3c3fad8292305d71a7e5",
        "dd640ce5ece34eada919d135949bbb0dd8866fb576ae25d23c624877db4ccb90",
    ),
    "describe-multi": (
        "dff01a6f55635d9360496ea19869903394f15d53ae1c4fcf3031d5973fa62e52",
        "dc9e65a400505b3bcd2413d06d9f612197fcecf3c95bf887e9e7314d6fc3f80f",
        "bc956e71b1c7ef008265af2240586ecb5daf91883f1f985aef8520f4a0e0f865",
    ),
    "head-topics": (
        "abee4ddedacde7a095c13ccd9da0385e60a19da5afe027aa5a14ae184bbc11fc",
        "d5f96b0afed3625eeb48b86a3b5b7426438a57ca75d83dc71fe2618f7f47799c",
        "fb81512f0f038ddf72e676f5485efabb60b3404d64ff98a94a83f9d1616fc5e1",
    ),
    "speak-am": (
        "ce7a5db86fab8aa14488d89536dbcfc6370d0d6585ba11f8ddafc7b1eb78d282",
        "77e6e80adc819ddf7e877572e9dcc04739fdabc118e3371412550f0b7668e93d",
        "6905c75806501ec7a7bac5c9f86acd3a72d21a4350d2a2cb173cb55bb9b290b5",
    ),
    "speak-be": (
        "c4d388a69848835501e7c09ba61c09abe077665d117daa49a4d252988b93b218",
        "bfe3f5d02d5f187fae8daa78f521ba4db7e9186ccd715e8f9b9b7212c70ef231",
        "a8fb03d4f5ec6d233897d201e7a815a14062a69c36c1c2ee767df7d31f332aaf",
    ),
    "speak-ky": (
        "937f14adf6ddafd830d7a09d50f7c98016eeb999236dc328e42b726d38bf210d",
        "5f86b4dcec1ea2e287d6463d95e235fac751a4c5f6a5df9329a2af2b33b8999e",
        "0e5b416d5e50ba89aefb2e0aeac4ee82d47502a1054d7bf7f5f83f8d85a1c361",
    ),
    "speak-sw": (
        "b6d6cfc5d84a2f8c49981b37b553c35f56603095c8f1e539aea4fad8d767f39d",
        "1de05b212c47d6f68e961c6cf0f1a28ebea23f6b607f1152c6e632e91daa3530",
        "59e1ea2b3aa7de3dddba9a8e79539fff1ee5d21dc3162088dce2aceaefc343f9",
    ),
    "text-am": (
        "a6c67df572c169e341fb273e4fc4a9c31c8f641e828eceb2b516faeb1d18c0fa",
        "6bfe5e824887a20f233efadac8f6fc521fd9f8bfd3b2a4cf6b1dea83de0e1853",
        "d8251d0e3bb44edb72e1a4e1a3a99669b34de670442131b7d9a9399d1eb63466",
    ),
    "text-be": (
        "222a405cf92eac8e6cec48980ac91e3b8fab01a4cadb4e1c2e5d12837343660e",
        "ed292231ae3e076ea19d3a9619f5f901aeca54c97dd9ed2a1939282226ce9819",
        "aea6b009a77f12d4a36f99116adbd152b01cb534a7e7c2e3d4e68585d07f1d2f",
    ),
    "text-ky": (
        "f715cbf0aadd40393d43550b2ebc1142d09896216d31345fdc5fa1b17f7db0b5",
        "ef595b950e280f4b92349cc11a10bf245a3bf5f8f0feec7bd755a7755cfe2fa3",
        "f6f77279ea313888f449ffed62b30905d9d421f0132466d9289aee834ef3e80d",
    ),
    "text-multi": (
        "dcc121a171cd78a709aec88a5a3a5acf5775133b712938683f332532416a1934",
        "8a4ea013c9673ec3ba79f240db4986831e0b4908d791224e8020b95291df90a2",
        "f3e43fec3c46c724077c0ce8a3776ed26dc363a1b97c3cecd1788ab6e04915ab",
    ),
    "text-sw": (
        "fd6c7bc44a7d5c3d4c3090399e9ac15907f1392988dabfb567fc26b8b6a7058c",
        "57537d08349e3899504ac6373a99f27025a4c3e99d13dba9c01fb4e2b266da5a",
        "87fa0cf1cb14a3fa203caeb88794e138bd3f39b71ecfcc9891fa52e4e3a54d3c",
    ),
    "text-sw-gemma": (
        "f579383dec313dee6fe33047fa24446fcb6365ff002dc182a05b182f35111ed0",
        "437fd5f2c9b4052256028707130fdecc5797c4db10bc2ebebfa992927a299baf",
        "e1b31675e1cdcd73a628d1ff93c4a423ca0acfd57b2b5d2c734a3581d5dcaa1f",
    ),
    "transcribe-be": (
        "fa093c197285fec89efafa3bea7e88b824c0c5175370f96d6ab35cc05d457595",
        "9baddc30eb346e490cbf71b5655a3bba748fcbeb9da92c6d9c4bf1842e0d0c2b",
        "d0740127d52ab2e62664e77782c22afad0387be93e508a3dacbba41c6b59f4ff",
    ),
    "transcribe-ky": (
        "d21e1e683a95a182f9730c58d7e6789588a3065cdaed57f484da95607f8379ba",
        "979692f676dce5c409109b3d54d75044ed7a3ad62fbb6533a131e5294f6d31c5",
        "c91ee6cd772b1225fd86f5c52aa87c236a7b2ec150201e9fda7bbee855030934",
    ),
    "translate-am": (
        "254dd4efeb1c5ca82d1668128021837b83429152cc79657d5dca44afb4326c45",
        "63d7bf82826d0e2ca7d67f6f685b9c7356d00378e9aa2cd1381876b3a61cc820",
        "958916796abea7545fc052da2a9b150483f4512321fa918ad27f0016aeab9f1d",
    ),
    "translate-multi": (
        "4352f5bae72c7ba2496427039d5aa79d0ba80dd1654d648c744029d69403c3c7",
        "c8aea36596e3b90426f6bdf40104d5c86208410684ce98f9e6c5902ba64db22e",
        "1ec76de300a00add1d55ea39b191a915d2d114a07f3b0a6631464ee2223485ff",
    ),
    "translate-nahuatl": (
        "b74aa0af35be123c8c4b68311a5e32c555546c557f7d5cbfe90ebab023be2b78",
        "59ffdb79cafebdc0f55181a49302d2bf3185cc623fe7495cb8c2ba3b8baea297",
        "6f9f8a5a29fd86fb9f0cbd0e9bf205a6d8c3ecd519db94d6d02b330094dfbf57",
    ),
    "translate-sw": (
        "8c2ba974e2d122eacf1592d8b5097c3cdad8830b03ce415c70aa449bf6ea46a6",
        "ed1f91848f0ae29ae150b10260170c59923119dcef6c81059def7dde1a093819",
        "bb23a34e39e7bb788b89455468034d2536989d9ef37724dbd458b7783f5d1899",
    ),
    "translate-am-prompt": (
        "e5dce4a8e16583423a0ac5814b14d3a7097b650f780e4f6fa166991977ab1b88",
        "7ac98a2ac50e24d831280095291bb409de2688935f0e9abc3de6d2d2022aa8cc",
        "9862500d6b9858089857bb5b24816f95129878e834b2bc7db35c55373d4d7636",
    ),
}


def test_all_shipped_recipes_are_known() -> None:
    assert set(recipe_names()) == set(KNOWN)


CHANGED = {
    "head-topics": ["base=kauli-clip", "method.head=tip_f"],
    "transcribe-be": ["transcribe.language_model=null"],
}
"""What was changed in a recipe since, by its figures -> as it was."""


@pytest.mark.parametrize("name", KNOWN)
def test_the_hash_is_that_of_the_first_release(name: str) -> None:
    then = CHANGED.get(name, [])
    plain, seeded = load_recipe(name, then), load_recipe(name, [*then, "train.seed=7"])
    assert (plain.sha256(), plain.sha256(with_seed=False), seeded.sha256()) == KNOWN[name]


def test_a_recipe_in_old_keys_has_the_same_hash() -> None:
    recipe = load_recipe("transcribe-ky")
    content = recipe.model_dump(mode="json")
    section = content.pop("transcribe")
    names = {new: old.rpartition(".")[2] for old, new in RENAMED.items()}
    content["speech"] = {names.get(f"transcribe.{key}", key): value for key, value in section.items()}
    content["train"]["repeat"] = content["train"].pop("source_weights")
    others = {"fusion": None, "pairs": None, "prompt": None, "objective": {"regulariser": "none", "weight": 0.0}}
    old = {**content, **others}
    assert recipe_sha256(old) == recipe.sha256()


def test_what_decides_the_result_changes_the_hash() -> None:
    plain = load_recipe("describe-be-fused")
    for change in ("describe.prompt=x", "describe.audio.stack=2", "describe.hidden_dim=8", "augment=[{kind: gain}]"):
        assert load_recipe("describe-be-fused", [change]).sha256() != plain.sha256(), change


def test_how_data_is_read_changes_the_hash_where_it_is_said() -> None:
    plain = load_recipe("text-sw")
    assert load_recipe("text-sw", ["data_options.leaks=content", "data_options={}"]).sha256() == plain.sha256()
    for change in ("leaks=pair", "language=sw", "map.text=sentence", "map=text=sentence", "encoding=cp1252"):
        assert load_recipe("text-sw", [f"data_options.{change}"]).sha256() != plain.sha256(), change
