"""What is written and how it is read: each pair was checked by eye, not taken from the code."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepaudio.speech.reading import script, spans, spoken

# fmt: off
ENGLISH = [
    ('I have 2 cats.', 'I have two cats.'),
    ('There are 12 eggs and 105 apples.', 'There are twelve eggs and one hundred and five apples.'),
    ('1,250 people came.', 'one thousand two hundred and fifty people came.'),
    ('It weighs 0.5 tons.', 'It weighs zero point five tons.'),
    ('Pi is 3.14159.', 'Pi is three point one four one five nine.'),
    ('The code is 007.', 'The code is zero zero seven.'),
    ('Account 1234567890 is closed.', 'Account one two three four five six seven eight nine zero is closed.'),
    ('The 1st, 2nd and 23rd.', 'The first, second and twenty-third.'),
    ('It was built in 1905.', 'It was built in nineteen oh five.'),
    ('It happened in 2024.', 'It happened in twenty twenty-four.'),
    ('from 1990 to 1995', 'from nineteen ninety to nineteen ninety-five'),
    ('1990-1995', 'nineteen ninety to nineteen ninety-five'),
    ('the 1990s', 'the nineteen nineties'),
    ("the '80s", 'the eighties'),
    ('in 2000 and 2008', 'in two thousand and two thousand and eight'),
    ('Jan. 5, 2023', 'January fifth, twenty twenty-three'),
    ('March 3rd', 'March third'),
    ('May 5-7, 2024', 'May fifth to seventh, twenty twenty-four'),
    ('5 May 2023', 'the fifth of May twenty twenty-three'),
    ('the 4th of July', 'the fourth of July'),
    ('2023-05-04', 'May fourth, twenty twenty-three'),
    ('12/25/2024', 'December twenty-fifth, twenty twenty-four'),
    ('at 3:30 pm', 'at three thirty P.M'),
    ('at 3:05', 'at three oh five'),
    ('at 12:00', "at twelve o'clock"),
    ('at 15:00', 'at fifteen hundred'),
    ('9am-5pm', 'nine A.M to five P.M'),
    ('9:00-17:00', 'nine to seventeen'),
    ('10:30:15', 'ten thirty and fifteen seconds'),
    ('$5', 'five dollars'),
    ('$1.50', 'one dollar and fifty cents'),
    ('$0.99', 'ninety-nine cents'),
    ('$3.5 million', 'three point five million dollars'),
    ('$5k', 'five thousand dollars'),
    ('£20 and €1', 'twenty pounds and one euro'),
    ('¥500', 'five hundred yen'),
    ('$10-20', 'ten to twenty dollars'),
    ('60 km/h', 'sixty kilometers per hour'),
    ('5 km', 'five kilometers'),
    ('1 kg', 'one kilogram'),
    ('16 GB', 'sixteen gigabytes'),
    ('100 m²', 'one hundred square meters'),
    ('-5°C', 'minus five degrees Celsius'),
    ('70°F', 'seventy degrees Fahrenheit'),
    ('20-25°C', 'twenty to twenty-five degrees Celsius'),
    ('10%', 'ten percent'),
    ('3–5%', 'three to five percent'),
    ('-2.5%', 'minus two point five percent'),
    ('1/2 cup', 'one half cup'),
    ('3/4', 'three quarters'),
    ('1 1/2 hours', 'one and a half hours'),
    ('2/3 of it', 'two thirds of it'),
    ('pages 10-20', 'pages ten to twenty'),
    ('555-1234', 'five five five, one two three four'),
    ('+1 (555) 123-4567', 'plus one, five five five, one two three, four five six seven'),
    ('Dr. Smith', 'Doctor Smith'),
    ('St. Louis', 'Saint Louis'),
    ('Main St.', 'Main Street.'),
    ('e.g. this', 'for example this'),
    ('cats, dogs, etc.', 'cats, dogs, et cetera.'),
    ('Smith vs. Jones', 'Smith versus Jones'),
    ('Henry VIII', 'Henry the eighth'),
    ('World War II', 'World War two'),
    ('Chapter IV', 'Chapter four'),
    ('No. 5', 'number five'),
    ('#1', 'number one'),
    ('R&D', 'R and D'),
    ('Tom & Jerry', 'Tom and Jerry'),
    ('2 + 2 = 4', 'two plus two equals four'),
    ('5 - 3 = 2', 'five minus three equals two'),
    ('3 × 4', 'three times four'),
    ('C++', 'C plus plus'),
    ('10^6', 'ten to the power of six'),
    ('x^2', 'x squared'),
    ('bob.smith@example.com', 'bob dot smith at example dot com'),
    ('https://www.example.com/docs', 'example dot com slash docs'),
    ('example.org', 'example dot org'),
    ('version 2.0.1', 'version two point zero point one'),
    ('192.168.1.1', 'one nine two dot one six eight dot one dot one'),
    ('MP3 and B2B', 'MP three and B two B'),
    ('Room 101', 'Room one oh one'),
    ('24/7', 'twenty-four seven'),
    ('foo/bar', 'foo slash bar'),
    ('snake_case', 'snake case'),
    ('**bold** and `code`', 'bold and code'),
    ('[a link](https://example.com)', 'a link'),
    ('# Heading', 'Heading'),
    ('- item', 'item'),
    ('~100 people', 'about one hundred people'),
    ('>10', 'greater than ten'),
    ('5\'10"', 'five foot ten'),
    ('½ cup', 'one half cup'),
    ('α and β', 'alpha and beta'),
    ('1e6', 'one times ten to the power of six'),
    ('the number -7', 'the number minus seven'),
    ('I love it 😀', 'I love it'),
    ('Mr. and Mrs. Lee', 'Mr. and Missus Lee'),
    ('500 mg', 'five hundred milligrams'),
    ('90 min', 'ninety minutes'),
    ('2x4', 'two times four'),
    ('10 000 people', 'ten thousand people'),
]
CHINESE = [
    ('我有2只猫。', '我有两只猫。'),
    ('有12个人', '有十二个人'),
    ('有1,250人', '有一千二百五十人'),
    ('20000元', '两万元'),
    ('200元', '二百元'),
    ('2500米', '两千五百米'),
    ('1.5万人', '一点五万人'),
    ('圆周率是3.14', '圆周率是三点一四'),
    ('0.5秒', '零点五秒'),
    ('007号', '零零七号'),
    ('2024年', '二零二四年'),
    ('1998年5月3日', '一九九八年五月三日'),
    ('2024-05-03', '二零二四年五月三日'),
    ('2024/5/3', '二零二四年五月三日'),
    ('2008年毕业', '二零零八年毕业'),
    ('20年前', '二十年前'),
    ('80年代', '八十年代'),
    ('5月1日', '五月一日'),
    ('2月2日', '二月二日'),
    ('3:30', '三点半'),
    ('15:05', '十五点零五分'),
    ('3:00', '三点整'),
    ('9:00-17:00', '九点到十七点'),
    ('10:30:15', '十点三十分十五秒'),
    ('3点半', '三点半'),
    ('2点', '两点'),
    ('2小时', '两小时'),
    ('2个月', '两个月'),
    ('2楼', '二楼'),
    ('第2名', '第二名'),
    ('第12章', '第十二章'),
    ('¥25.5', '二十五点五元'),
    ('$20', '二十美元'),
    ('€3.5亿', '三点五亿欧元'),
    ('￥100', '一百元'),
    ('100元', '一百元'),
    ('50%', '百分之五十'),
    ('3.5%', '百分之三点五'),
    ('3%-5%', '百分之三到百分之五'),
    ('50%~60%', '百分之五十到百分之六十'),
    ('2‰', '千分之二'),
    ('1/2', '二分之一'),
    ('3/4的人', '四分之三的人'),
    ('3:2', '三比二'),
    ('-5°C', '零下五摄氏度'),
    ('25℃', '二十五摄氏度'),
    ('5~10℃', '五到十摄氏度'),
    ('-10', '负十'),
    ('60km/h', '六十公里每小时'),
    ('2kg', '两公斤'),
    ('1.5m', '一点五米'),
    ('100m²', '一百平方米'),
    ('500ml', '五百毫升'),
    ('16GB', '十六GB'),
    ('13812345678', '幺三八，幺二三四，五六七八'),
    ('拨打110', '拨打幺幺零'),
    ('400-820-8888', '四零零，八二零，八八八八'),
    ('010-12345678', '零幺零，幺二三四五六七八'),
    ('305路', '三零五路'),
    ('302室', '三零二室'),
    ('航班CA1234', '航班CA 幺二三四'),
    ('G1234次列车', 'G幺二三四次列车'),
    ('3-5个', '三到五个'),
    ('2010-2020年', '二零一零到二零二零年'),
    ('10~20人', '十到二十人'),
    ('2 + 3 = 5', '二 加 三 等于 五'),
    ('5 - 3 = 2', '五减三 等于 二'),
    ('3×4', '三乘四'),
    ('A&B', 'A and B'),
    ('和/或', '和或'),
    ('C++', 'C plus plus'),
    ('iPhone 15', 'iPhone 十五'),
    ('Windows 11', 'Windows 十一'),
    ('5G网络', '五G网络'),
    ('MP3', 'MP 三'),
    ('COVID-19', 'COVID 十九'),
    ('版本2.0.1', '版本二点零点一'),
    ('邮箱是bob@example.com', '邮箱是bob at example dot com'),
    ('网址是www.example.com', '网址是example dot com'),
    ('**重要**', '重要'),
    ('[这里](https://a.com)', '这里'),
    ('# 标题', '标题'),
    ('- 第一项', '第一项'),
    ('你好😀', '你好'),
    ('约100人', '约一百人'),
    ('>10', '大于十'),
    ('①苹果', '一苹果'),
    ('αβ', 'alpha beta'),
    ('2两', '二两'),
    ('2斤', '两斤'),
    ('22个', '二十二个'),
    ('102个', '一百零二个'),
    ('2亿', '两亿'),
    ('2万', '两万'),
    ('12点', '十二点'),
    ('第2个', '第二个'),
    ('２０２４年', '二零二四年'),
    ('3公里', '三公里'),
    ('2倍', '两倍'),
    ('大于2的数', '大于二的数'),
    ('2、3个', '两三个'),
    ('周2', '周二'),
    ('1个', '一个'),
]
# fmt: on


@pytest.mark.parametrize(("written", "read"), ENGLISH)
def test_english(written: str, read: str) -> None:
    assert spoken(written, "en") == read


@pytest.mark.parametrize(("written", "read"), CHINESE)
def test_chinese(written: str, read: str) -> None:
    assert spoken(written, "zh") == read


def test_readings_stay_with_what_is_written() -> None:
    assert [(span.source, span.spoken) for span in spans("Dr. Lee paid $5 (cash).", "en")] == [
        ("Dr. ", "Doctor "),
        ("Lee ", "Lee "),
        ("paid ", "paid "),
        ("$5 (", "five dollars ("),
        ("cash).", "cash)."),
    ]
    assert [span.source for span in spans("我用Python写了2个程序。", "zh")] == [
        *("我", "用", "Python", "写", "了", "2", "个", "程", "序。"),
    ]


_FRAGMENTS = st.sampled_from(
    [
        "3.5",
        "$",
        "%",
        "-",
        "/",
        ":",
        "2024",
        "年",
        "月",
        "5",
        "km",
        " ",
        ".",
        "a",
        "IV",
        "#",
        "*",
        "@",
        "😀",
        "的",
        "Dr.",
        "\n",
        "[",
    ]
)


@given(st.one_of(st.text(max_size=60), st.lists(_FRAGMENTS, max_size=12).map("".join)), st.sampled_from(["en", "zh"]))
def test_nothing_written_is_lost(text: str, language: str) -> None:
    assert "".join(span.source for span in spans(text, language)) == text


@given(st.lists(_FRAGMENTS, max_size=12).map("".join), st.sampled_from(["en", "zh"]))
def test_no_digit_is_left_unread(text: str, language: str) -> None:
    assert not any(char.isdigit() for char in spoken(text, language))


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("Hello there", "en"),
        ("你好", "zh"),
        ("我用 Python 写程序", "zh"),
        ("ありがとう", "ja"),
        ("東京は", "ja"),
        ("안녕하세요", "ko"),
        ("Привет", "ru"),
        ("3.14", None),
        ("😀!", None),
    ],
)
def test_script(text: str, language: str | None) -> None:
    assert script(text) == language


def test_script_among_readable_languages() -> None:
    assert script("Привет, ok", {"en", "zh"}) == "en"
    assert script("Привет", {"en", "zh"}) is None
    # Kanji among kana are not Chinese.
    assert script("東京は", {"en", "zh"}) == "ja"
