"""What is read out of a compiled program's text."""

from benchmarks import hlo

TEXT = """
ENTRY %main {
  %p = f32[8]{0} parameter(0)
  %a = (f32[], f32[4]{0}, /*index=2*/bf16[2,3]{1,0}) all-reduce(%x, %y, %z), channel_id=1, to_apply=%add
  %b = f32[16]{0:T(128)} all-reduce-start(%p), channel_id=2, to_apply=%add
  %c = f32[16]{0:T(128)} all-reduce-done(%b)
  ROOT %d = f32[8]{0} add(%p, %p)
}
"""


def test_bytes_of_all_reduces_are_those_of_their_results():
    assert hlo.all_reduced(TEXT) == 4 + 16 + 12 + 64
    assert hlo.collectives(TEXT) == {"all-reduce": 2}
