"""One line out of what task groups raise."""

from workers.faults import WorkerFault, leaves, story


def test_a_single_fault_is_its_own_leaf() -> None:
    fault = WorkerFault("vLLM is not installed")
    assert list(leaves(fault)) == [fault]
    assert story(fault) == "vLLM is not installed"


def test_nested_groups_are_flattened_in_order() -> None:
    first, second, third = WorkerFault("one"), OSError("two"), KeyboardInterrupt("three")
    group = BaseExceptionGroup("all", [ExceptionGroup("inner", [first, ExceptionGroup("more", [second])]), third])
    assert list(leaves(group)) == [first, second, third]
    assert story(group) == "one; two; three"


def test_a_fault_without_a_message_is_named() -> None:
    assert story(ExceptionGroup("all", [TimeoutError(), WorkerFault("late")])) == "TimeoutError; late"
