"""The page in a real browser: Debian's chromium, without a window."""

from __future__ import annotations

import shutil

import pytest

from kd_prune.sweep.page import write_page

from .runs import collected, write_run

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (BROWSER and DRIVER), reason="no browser: apt-get install chromium chromium-driver"
)
EVIL = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for argument in ("--headless", "--no-sandbox", "--disable-gpu", "--window-size=1280,2000"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Two tasks, two methods, two sparsities and a milestone, two seeds; and one that failed."""
    folder = tmp_path_factory.mktemp("sweep")
    for task in ("mrpc", "rte"):
        for method in ("none", "sparsebert"):
            for seed in (1, 2):
                for final in (0.8, 0.95):
                    write_run(
                        folder / f"{task}-{method}-s{final}-seed{seed}",
                        task__name=task,
                        choices={"distillation": method},
                        distillation={"terms": {method: 1.0}},
                        sparsity__final=final,
                        seed=seed,
                        accuracy=0.9 - final / 10 - seed / 100,
                        milestones={0.5: 0.88} if final == 0.95 else None,
                    )
    write_run(
        folder / "bad",
        state="failed",
        reason=EVIL,
        seed=3,
        sparsity__final=95,
        distillation={"terms": {"sparsebert": 1.0}},
    )
    write_page(*collected(folder), folder / "report.html", title=f"sweep {EVIL}")
    return folder / "report.html"


@pytest.fixture
def page(browser, sweep):
    return opened(browser, sweep)


def opened(browser, file):
    browser.get(f"file://{file}")
    drawn = "return document.documentElement.dataset.drawn === 'yes'"
    # Chromium may report the page as loaded before its scripts have run.
    WebDriverWait(browser, 20).until(lambda driver: driver.execute_script(drawn))
    return browser


def click(page, key, value):
    """One checkbox of a filter."""
    page.execute_script(
        "const box = [...document.querySelectorAll('#filters input')].find("
        "(box) => box.dataset.filter === arguments[0] && box.dataset.value === arguments[1]);"
        "box.click();",
        key,
        value,
    )


def drawn(page, section):
    """Task and its traces, as Plotly has them."""
    return page.execute_script(
        "return [...document.querySelectorAll(`#${arguments[0]} .figures > div`)].map((figure) =>"
        " [figure.dataset.task, (figure.data ?? []).map((trace) =>"
        " ({...trace.meta, x: trace.x, y: trace.y, error: trace.error_y?.array,"
        " symbols: trace.marker?.symbol}))])",
        section,
    )


def column(page, table, number):
    cells = page.find_elements("css selector", f"{table} tbody tr td:nth-child({number})")
    return [cell.text for cell in cells]


def test_nothing_is_fetched_and_nothing_complains(page, sweep):
    assert page.get_log("browser") == []
    addresses = page.execute_script(
        "return performance.getEntriesByType('resource').map((entry) => entry.name)"
    )
    assert [a for a in addresses if not a.startswith(("data:", "blob:"))] == []


def test_what_a_run_says_is_text(page):
    assert page.title.startswith("sweep <img")
    assert EVIL in page.find_element("css selector", "#problems tbody").text
    assert page.find_elements("css selector", "img") == []


def test_curves_have_milestones_and_error_bars(page):
    ((task, traces), (other, _)) = drawn(page, "sparsity")
    assert (task, other) == ("mrpc", "rte")
    by_method = {trace["method"]: trace for trace in traces}
    assert set(by_method) == {"none", "sparsebert"}
    curve = by_method["sparsebert"]
    assert curve["x"] == pytest.approx([50, 80, 95])
    assert curve["symbols"] == ["diamond-open", "circle", "circle"]
    assert curve["y"] == pytest.approx([88.0, 80.5, 79.0])  # means of two seeds
    assert curve["error"] == pytest.approx([0, 0.5**0.5, 0.5**0.5])
    # two lines of a figure, which WebDriver joins
    assert "teacher90.0" in page.find_element("css selector", "#sparsity").text


def test_the_ninth_method_has_the_colour_of_the_first_and_another_symbol(browser, tmp_path):
    for number in range(9):
        terms = {"terms": {f"method{number}": 1.0}}
        write_run(tmp_path / f"run{number}", distillation=terms, accuracy=0.8)
    write_page(*collected(tmp_path), tmp_path / "report.html")
    page = opened(browser, tmp_path / "report.html")
    for section in ("sparsity", "front"):
        markers = page.execute_script(
            f"return [...document.querySelector('#{section} .figures > div').data]"
            ".filter((trace) => trace.marker).map((trace) =>"
            " [trace.line?.color ?? trace.marker.color, [trace.marker.symbol].flat()[0]])"
        )
        assert len({tuple(marker) for marker in markers}) == 9
        assert {symbol for _, symbol in markers[:8]} == {"circle"}
        assert markers[8] == [markers[0][0], "square"]


def test_names_beside_points_cover_nothing_where_few_methods_have_several(browser, tmp_path):
    accuracies = {"a": 0.9, "b": 0.9, "crowded": 0.801, "more": 0.8, "nearest": 0.799, "<b>": 0.7}
    for name, accuracy in accuracies.items():
        folder = tmp_path / f"run-{ord(name[0])}"
        terms = {"terms": {name: 1.0}}
        write_run(folder, choices={"distillation": name}, distillation=terms, accuracy=accuracy)
    write_run(
        tmp_path / "run-second",
        choices={"distillation": "crowded"},
        distillation={"terms": {"crowded": 1.0}},
        sparsity__final=0.5,
        accuracy=0.85,
    )
    write_page(*collected(tmp_path), tmp_path / "report.html")
    page = opened(browser, tmp_path / "report.html")
    labels = page.find_elements("css selector", "#front .annotation-text-g text")
    named = [label.text for label in labels]
    assert sorted(named) == ["<b>", "a, b", "crowded", "crowded", "more", "nearest"]
    boxes = [label.rect for label in labels]
    boxes += [point.rect for point in page.find_elements("css selector", "#front path.point")]
    for i, one in enumerate(boxes[: len(labels)]):
        for other in boxes[i + 1 :]:
            apart = (
                one["x"] >= other["x"] + other["width"]
                or other["x"] >= one["x"] + one["width"]
                or one["y"] >= other["y"] + other["height"] - 2
                or other["y"] >= one["y"] + one["height"] - 2
            )
            assert apart, (one, other)
    assert page.find_elements("css selector", "#front .legend") == []


def test_filters_act_on_figures_and_tables(page):
    assert len(column(page, "#runs table", 1)) == 17
    click(page, "task", '"rte"')
    assert [task for task, _ in drawn(page, "sparsity")] == ["mrpc"]
    assert set(column(page, "#summary table", 1)) == {"mrpc"}
    click(page, "method", '"none"')
    assert {t["method"] for _, traces in drawn(page, "sparsity") for t in traces} == {"sparsebert"}
    click(page, "target", "0.8")
    ((_, traces),) = drawn(page, "sparsity")
    assert sorted(x for t in traces for x in t["x"]) == pytest.approx([50, 95])
    click(page, "seed", "1")
    ((_, traces),) = drawn(page, "sparsity")
    assert {error for t in traces for error in t["error"]} == {0}
    click(page, "state", '"finished"')
    assert drawn(page, "sparsity") == [["", []]]
    assert "No finished run in view." in page.find_element("css selector", "#sparsity").text
    assert column(page, "#runs table", 1) == ["bad"]
    assert page.get_log("browser") == []


def test_a_row_with_hidden_seeds_is_shown_seed_by_seed(page):
    def seeds():
        return column(page, "#summary table", 9)

    assert set(seeds()) == {"2"}
    click(page, "seed", "1")
    assert set(seeds()) == {"seed 2"}
    # Students of one seed are compared with each other.
    ((_, traces), _) = drawn(page, "front")
    assert sorted(set(traces[0]["y"])) == pytest.approx([78.5, 80.0, 88.0])
    click(page, "seed", "1")
    assert set(seeds()) == {"2"}


def test_the_front_is_that_of_the_students_in_view(page):
    ((_, before), _) = drawn(page, "front")
    click(page, "target", "0.5")  # these beat all others in the metric
    ((_, after), _) = drawn(page, "front")
    assert max(before[0]["y"]) == pytest.approx(88.0)
    assert max(after[0]["y"]) == pytest.approx(80.5)


def test_every_run_lists_its_stages(page):
    (text,) = set(column(page, "#runs table", 13)[1:2])
    assert text.startswith("teacher: accuracy 90.0, 2 s; student: accuracy ")


def test_none_all_and_search(page):
    (none,) = page.find_elements(
        "xpath", "//fieldset[legend[starts-with(., 'task')]]//button[.='none']"
    )
    none.click()
    assert column(page, "#runs table", 1) == ["No run in view."]
    page.find_element(
        "xpath", "//fieldset[legend[starts-with(., 'task')]]//button[.='all']"
    ).click()
    page.find_element("css selector", "input[type=search]").send_keys("rte- seed2")
    assert len(column(page, "#runs table", 1)) == 4
    assert "4 of 17 runs in view" in page.find_element("id", "counts").text


def test_what_cannot_be_a_sparsity_is_none_on_offer(page):
    labels = page.find_elements("xpath", "//fieldset[legend[starts-with(., 'sparsity')]]//label")
    assert [label.text for label in labels] == ["50 %", "80 %", "95 %", "impossible"]
    row = column(page, "#runs table", 1).index("bad")
    assert column(page, "#runs table", 6)[row] == "95"  # as it was asked for
    click(page, "target", '"impossible"')
    assert "bad" not in column(page, "#runs table", 1)
    assert len(column(page, "#runs table", 1)) == 16


def test_the_axes_of_the_tensors_are_named(page):
    title = "return document.querySelector('#tensors .figure').layout.xaxis.title.text"
    assert page.execute_script(title).startswith("16 runs")
    click(page, "task", '"rte"')
    assert page.execute_script(title) == "run"


def test_a_header_sorts_numbers_as_numbers(page):
    def sort(title):
        page.find_element("xpath", f"//section[@id='runs']//th/button[.='{title}']").click()
        return column(page, "#runs table", 7)

    up, down = sort("zeros %"), sort("zeros %")
    numbers = [float(text) for text in up if text != "–"]
    assert numbers == sorted(numbers)
    assert [float(text) for text in down if text != "–"] == numbers[::-1]
    assert up[-1] == down[-1] == "–"  # what is missing comes last either way
    header = page.find_element("xpath", "//section[@id='runs']//th[button[.='zeros %']]")
    assert header.get_attribute("aria-sort") == "descending"


def test_front_curves_tensors_and_configuration(page):
    ((_, traces), _) = drawn(page, "front")
    front = traces[0]["y"]
    assert front == sorted(front)  # more weights only where they buy something
    shown = page.execute_script("return document.querySelector('#curves .figure').data.length")
    assert shown == 3 * 8  # the first eight runs, three quantities each
    z = page.execute_script("return document.querySelector('#tensors .figure').data[0].z")
    assert len(z) == 3
    assert len(z[0]) == 16
    assert set(z[0]) == {80, 95}
    heads = page.find_elements("css selector", "#differences th")
    assert {"sparsity.final", "task.name", "seed"} <= {head.text for head in heads}
    assert "optimizer.lr" not in {head.text for head in heads}
    page.find_element("id", "only").click()
    terms = {f"distillation.terms.{name}" for name in ("none", "sparsebert")}
    assert set(column(page, "#resolved", 1)) == {*terms, "seed", "sparsity.final"}
    assert page.get_log("browser") == []
