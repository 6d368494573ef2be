from __future__ import annotations

from pathlib import Path

import pytest

from medseg.errors import UnusableInputError
from medseg.weak_table import TableRow, read_table, read_tables

IMAGES = {name: Path("images") / f"{name}.png" for name in ("a", "b", "c")}


def write(folder: Path, text: str, name: str = "labels.csv") -> Path:
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return file


def read(folder: Path, text: str) -> dict[str, TableRow]:
    return read_table(write(folder, text), IMAGES)


def test_row_becomes_weak_labels_patient_and_domain(tmp_path: Path) -> None:
    rows = read(
        tmp_path,
        "image,patient,domain,angle_1_deg,extent_left lung,extent_2,x0,y0,landmark_S1_x,landmark_S1_y,landmark_S1_z\n"
        "b.png,007,vb2,40.5,10-25.5,30,1,2.5,-3,4e1,5\n",
    )

    assert list(rows) == ["b"]
    assert (rows["b"].patient, rows["b"].domain) == ("007", "vb2")
    weak = rows["b"].weak
    assert weak is not None
    assert weak.angles == {"angle_1": 40.5}
    assert weak.extent == {"left lung": (10.0, 25.5), "2": 30.0}
    assert weak.landmarks == {"0": (1.0, 2.5), "S1": (-3.0, 40.0, 5.0)}
    assert (weak.landmark_unit, weak.domain, weak.source, weak.by) == ("px", "vb2", "table", None)


def test_angles_and_landmarks_keep_the_order_of_their_columns(tmp_path: Path) -> None:
    weak = read(tmp_path, "image,angle_2,angle_1,angle_3,y9,x9,x10,y10\na,20,100,10,1,2,3,4\n")["a"].weak

    assert weak is not None
    assert list(weak.angles.items()) == [("angle_2", 20.0), ("angle_1", 100.0), ("angle_3", 10.0)]
    assert list(weak.landmarks.items()) == [("9", (2.0, 1.0)), ("10", (3.0, 4.0))]


def test_empty_cells_are_unknown_not_zero(tmp_path: Path) -> None:
    rows = read(tmp_path, "image,case,domain,angle_1,angle_2,x0,y0\na,,,,0,,\nb,p1,,,,,\n\n")

    assert rows["a"].weak is not None
    assert (rows["a"].weak.angles, rows["a"].weak.landmarks) == ({"angle_2": 0.0}, {})
    assert (rows["b"].weak, rows["b"].patient, rows["b"].domain) == (None, "p1", None)
    assert set(rows) == {"a", "b"}


@pytest.mark.parametrize(
    ("header", "cell"),
    [("Image", "a.png"), ("image_id", "a"), ("FileName", "a.png"), ("file", "a"), ("id", "a")],
)
def test_image_is_named_by_file_or_id(tmp_path: Path, header: str, cell: str) -> None:
    assert list(read(tmp_path, f"angle_1, {header} \n1, {cell} \n")) == ["a"]


def test_image_column_wins_over_a_column_of_running_numbers(tmp_path: Path) -> None:
    assert list(read(tmp_path, "id,image,angle_1\n1,c.png,2\n")) == ["c"]


def test_file_names_as_patients_are_one_series(tmp_path: Path) -> None:
    rows = read(tmp_path, "image,case\na,anna-coronal1.jpg\nb,anna-coronal17.JPG\n")

    assert (rows["a"].patient, rows["b"].patient) == ("anna-coronal", "anna-coronal")
    assert read(tmp_path, "image,case\na,12\nb,3.png\n")["b"].patient == "3.png"


def test_patient_column_wins_over_case(tmp_path: Path) -> None:
    assert read(tmp_path, "image,case,patient\na,1,P7\n")["a"].patient == "P7"


def test_columns_that_are_not_read_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="medseg"):
        read(tmp_path, "image,width,patient,angle_1,mm_per_px,domain\na,512,p,1,0.3,d\n")

    assert caplog.messages == [f"{tmp_path / 'labels.csv'} line 1: columns that are not read: width, mm_per_px"]


def test_byte_order_mark_crlf_and_quotes_are_read(tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    file.write_bytes('\ufeffimage,patient,angle_1\r\na,"Müller, A",5\r\n'.encode())

    assert read_table(file, IMAGES)["a"].patient == "Müller, A"


HEADER = "image,domain,angle_1_deg,extent_2,x0,y0\n"
GOOD = "a,,10,20,1,2\n"


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("b,,181,20,1,2", r"line 3, column 'angle_1_deg': .*angle_1 is 181.*0\.\.180"),
        ("b,,-1,20,1,2", r"line 3, column 'angle_1_deg': .*0\.\.180"),
        ("b,,steep,20,1,2", r"line 3, column 'angle_1_deg': 'steep' is no number"),
        ("b,,nan,20,1,2", r"line 3, column 'angle_1_deg': 'nan' is no number; .*empty"),
        ("b,,1_0,20,1,2", r"line 3, column 'angle_1_deg': '1_0' is no number"),
        ("b,,10,101,1,2", r"line 3, column 'extent_2': .*region 2 is 101.*0\.\.100"),
        ("b,,10,30-20,1,2", r"line 3, column 'extent_2': .*low, high"),
        ('b,,10,"20,5",1,2', r"line 3, column 'extent_2': '20,5' is no number; write it as 12\.5"),
        ("b,,10,20,1,inf", r"line 3, column 'y0': 'inf' is no number"),
        ("b,,10,20,,2", r"line 3, column 'x0' is empty; fill it, or empty the whole point '0'"),
        ("b,,10,20,1", r"line 3 has 5 cells, but the header has 6"),
        ("b,,10,20,1,2,3", r"line 3 has 7 cells, but the header has 6"),
        (
            "d.png,,10,20,1,2",
            r"line 3, column 'image': there is no image 'd\.png' among the 3 that are known; .*remove the row",
        ),
        ("b.jpg,,10,20,1,2", r"line 3, column 'image': there is no image 'b\.jpg'"),
        (",,10,20,1,2", r"line 3, column 'image': there is no image ''"),
        ("a.png,,10,20,1,2", r"line 3, column 'image': image 'a\.png' already has a row, .*labels\.csv line 2"),
        ('b,"x,10,20,1,2', r"line 3 is no CSV"),
    ],
)
def test_bad_row_names_file_line_column_and_reason(tmp_path: Path, row: str, words: str) -> None:
    with pytest.raises(UnusableInputError, match=r"labels\.csv " + words):
        read(tmp_path, HEADER + GOOD + row + "\n")


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ("angle_1,x0,y0", "line 1: there is no column 'image'"),
        ("image;angle_1", "line 1: .*separated by ';', save it with commas"),
        ("image,name,colour", r"line 1: no column but 'image' is known; .*angle_NAME.*rename the file"),
        ("image,x3,y2,x2", "line 1, column 'x3': its y column is missing"),
        ("image,landmark_S1_y", "line 1, column 'landmark_S1_y': its x column is missing"),
        ("image,angle_1,Angle_1", "line 1: two columns are called 'angle_1'"),
        ("image,angle_1,angle_1_deg", "line 1, column 'angle_1_deg' names the same label as 'angle_1'"),
        ("image,x0,y0,landmark_0_x", "line 1, column 'landmark_0_x' names the same label as 'x0'"),
        ("image,angle_1_rad", "line 1, column 'angle_1_rad' is not understood; .*degrees"),
        ("image,landmark_unit,x0,y0", "line 1, column 'landmark_unit' is not understood; .*pixels"),
        ("image,extent", "line 1, column 'extent' is not understood; .*extent_REGION"),
        ("", "is empty; a table of images has a column image"),
    ],
)
def test_bad_header_is_one_sentence(tmp_path: Path, header: str, words: str) -> None:
    with pytest.raises(UnusableInputError, match=r"labels\.csv " + words):
        read(tmp_path, header + "\n")


def test_other_encodings_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    file.write_bytes("image,patient\na,Müller\n".encode("latin-1"))

    with pytest.raises(UnusableInputError, match=r"labels\.csv is no UTF-8 text"):
        read_table(file, IMAGES)


def test_two_tables_of_a_folder_are_joined_by_image(tmp_path: Path) -> None:
    write(tmp_path, "image,case,angle_1\na,p1,10\nb,p2,20\n")
    write(tmp_path, "image,domain,x0,y0\nc.png,T1,1,2\nb.png,T2,3,4\n", "landmarks.csv")

    rows = read_tables(tmp_path, IMAGES)

    assert {name: (row.patient, row.domain) for name, row in rows.items()} == {
        "a": ("p1", None),
        "b": ("p2", "T2"),
        "c": ("", "T1"),
    }
    weak = rows["b"].weak
    assert weak is not None
    assert (weak.angles, weak.landmarks, weak.domain) == ({"angle_1": 20.0}, {"0": (3.0, 4.0)}, "T2")


@pytest.mark.parametrize(
    ("header", "row", "words"),
    [
        ("image,patient", "a,p2", "patient is 'p2', but 'p1' in .*labels.csv line 2"),
        ("image,domain", "a,T2", "domain is 'T2', but 'T1' in .*labels.csv line 2"),
        ("image,x0,y0", "a,1,2", "landmarks '0' is in .*labels.csv line 2 as well"),
    ],
)
def test_tables_that_contradict_each_other_are_refused(tmp_path: Path, header: str, row: str, words: str) -> None:
    write(tmp_path, "image,patient,domain,x0,y0\na,p1,T1,1,2\n")
    write(tmp_path, f"{header}\n{row}\n", "landmarks.csv")

    with pytest.raises(UnusableInputError, match=rf"landmarks\.csv line 2: {words}"):
        read_tables(tmp_path, IMAGES)


def test_folder_without_tables_has_no_rows(tmp_path: Path) -> None:
    assert read_tables(tmp_path, IMAGES) == {}
