"""Which jobs are overdue, with a clock of numbers."""

import random

from engine.deadlines import Deadlines


def test_a_job_is_overdue_once_and_never_after_its_end() -> None:
    deadlines = Deadlines()
    for job_id, deadline in (("late", 3.0), ("soon", 1.0), ("over", 2.0)):
        deadlines.watch(job_id, deadline)
    deadlines.forget("over")
    assert list(deadlines.overdue(1.0)) == []  # not past it
    assert list(deadlines.overdue(5.0)) == ["soon", "late"]
    assert list(deadlines.overdue(9.0)) == []


def test_an_id_that_comes_again_has_its_new_deadline() -> None:
    deadlines = Deadlines()
    deadlines.watch("a", 1.0)
    deadlines.forget("a")
    deadlines.watch("a", 4.0)
    assert list(deadlines.overdue(2.0)) == []
    assert list(deadlines.overdue(5.0)) == ["a"]


def test_jobs_that_have_ended_do_not_pile_up() -> None:
    draw, deadlines = random.Random(1), Deadlines()
    alive: dict[str, float] = {}
    for number in range(3000):
        alive[str(number)] = deadline = number + draw.uniform(100, 900)
        deadlines.watch(str(number), deadline)
        if len(alive) > 20:
            ended = draw.choice(list(alive))
            del alive[ended]
            deadlines.forget(ended)
        overdue = list(deadlines.overdue(float(number)))
        assert overdue == sorted((j for j, d in alive.items() if d < number), key=lambda j: alive[j])
        for job_id in overdue:
            del alive[job_id]
        assert len(deadlines._heap) < 2 * 21 + 70
