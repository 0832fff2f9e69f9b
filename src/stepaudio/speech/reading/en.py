"""English readings: numbers, dates, money, units, abbreviations and symbols in words."""

from __future__ import annotations

import re

from stepaudio.speech.reading import Rule
from stepaudio.speech.reading.common import ADDRESSES, DIGITS, GREEK, MARKDOWN, SILENT, silent

_NUM = r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?"
_DASH = r"\s?[-–—~]\s?"
_SCALES = {"k": "thousand", "m": "million", "b": "billion", "bn": "billion", "t": "trillion", "tn": "trillion"}
_SCALE = r"(?:\s?(thousand|million|billion|trillion|[kKmMbBtT]n?)\b)?"
_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
_MONTH = "|".join(rf"{name}|{name[:3]}\.?" for name in _MONTHS) + r"|Sept\.?"
_CURRENCIES = {
    "$": ("dollar", "dollars", "cent", "cents"),
    "£": ("pound", "pounds", "penny", "pence"),
    "€": ("euro", "euros", "cent", "cents"),
    "¥": ("yen", "yen", "sen", "sen"),
    "₹": ("rupee", "rupees", "paisa", "paise"),
    "₩": ("won", "won", "jeon", "jeon"),
    "USD": ("dollar", "dollars", "cent", "cents"),
    "EUR": ("euro", "euros", "cent", "cents"),
    "GBP": ("pound", "pounds", "penny", "pence"),
    "CNY": ("yuan", "yuan", "fen", "fen"),
    "RMB": ("yuan", "yuan", "fen", "fen"),
}
_CURRENCY = "|".join(map(re.escape, _CURRENCIES))
_UNITS = {
    "km": "kilometer", "m": "meter", "cm": "centimeter", "mm": "millimeter", "µm": "micrometer",
    "nm": "nanometer", "mi": "mile", "yd": "yard", "ft": "foot", "kg": "kilogram", "g": "gram", "mg": "milligram",
    "µg": "microgram", "lb": "pound", "lbs": "pound", "oz": "ounce", "l": "liter", "L": "liter",
    "ml": "milliliter", "mL": "milliliter", "h": "hour", "hr": "hour", "hrs": "hour", "min": "minute",
    "mins": "minute", "s": "second", "sec": "second", "secs": "second", "ms": "millisecond", "Hz": "hertz",
    "kHz": "kilohertz", "MHz": "megahertz", "GHz": "gigahertz", "KB": "kilobyte", "kB": "kilobyte",
    "MB": "megabyte", "GB": "gigabyte", "TB": "terabyte", "W": "watt", "kW": "kilowatt", "MW": "megawatt",
    "GW": "gigawatt", "kWh": "kilowatt hour", "V": "volt", "mAh": "milliamp hour", "kcal": "kilocalorie",
    "cal": "calorie", "dB": "decibel", "px": "pixel", "ha": "hectare", "kPa": "kilopascal", "Pa": "pascal",
    "mph": "mile per hour", "kph": "kilometer per hour", "Mbps": "megabit per second",
    "Gbps": "gigabit per second", "kbps": "kilobit per second", "fps": "frame per second",
    "rpm": "revolution per minute",
}  # fmt: skip
_UNIT = "|".join(sorted(_UNITS, key=len, reverse=True))
_TITLES = {
    "Mr": "Mister", "Mrs": "Missus", "Ms": "Miz", "Dr": "Doctor", "Prof": "Professor", "St": "Saint", "Mt": "Mount",
    "Ft": "Fort", "Gen": "General", "Gov": "Governor", "Sen": "Senator", "Rep": "Representative", "Capt": "Captain",
    "Lt": "Lieutenant", "Col": "Colonel", "Sgt": "Sergeant", "Rev": "Reverend", "Pres": "President",
}  # fmt: skip
_ABBREVIATIONS = {
    "e.g.": "for example", "i.e.": "that is", "etc.": "et cetera", "vs.": "versus", "vs": "versus",
    "approx.": "approximately",
    "Jr.": "Junior", "Sr.": "Senior", "St.": "Street", "Ave.": "Avenue", "Blvd.": "Boulevard", "Rd.": "Road",
    "Inc.": "Incorporated", "Ltd.": "Limited", "Corp.": "Corporation", "Co.": "Company", "Bros.": "Brothers",
    "Dept.": "Department", "Univ.": "University", "govt.": "government", "dept.": "department", "est.": "established",
    "fig.": "figure",
    "Fig.": "Figure", "vol.": "volume", "Vol.": "Volume", "pp.": "pages", "cf.": "compare", "w/o": "without",
    "w/": "with", "Mon.": "Monday", "Tue.": "Tuesday", "Tues.": "Tuesday", "Wed.": "Wednesday", "Thu.": "Thursday",
    "Thurs.": "Thursday", "Fri.": "Friday", "Jan.": "January", "Feb.": "February", "Aug.": "August",
    "Sept.": "September", "Oct.": "October", "Nov.": "November", "Dec.": "December",
}  # fmt: skip
_ABBREVIATION = "|".join(sorted(map(re.escape, _ABBREVIATIONS), key=len, reverse=True))
# Roman numerals are read only after a word that is followed by one: "I" and "V" alone are not numbers.
_COUNTED = "Chapter|Part|Act|Scene|Section|Volume|Book|War|Phase|Type|Class|Level|Appendix|Article|Title|Super Bowl"
_REGENT = (
    "Henry|Louis|Charles|George|Edward|Richard|William|James|Elizabeth|Philip|Napoleon|Alexander|Peter|Pius|John Paul"
    "|Benedict|Francis|Frederick|Nicholas|Catherine|Mary"
)
_ROMAN = r"(?=[IVXLC])(?:X[CL]|L?X{0,3})(?:I[XV]|V?I{0,3})"
_SYMBOLS = {
    "&": "and", "@": "at", "+": "plus", "=": "equals", "×": "times", "÷": "divided by", "±": "plus or minus",
    "≤": "less than or equal to", "≥": "greater than or equal to", "≠": "not equal to", "≈": "approximately",
    "→": "to", "√": "the square root of", "∞": "infinity", "%": "percent", "°": "degrees", "©": "copyright",
    "§": "section", "½": "one half", "¼": "one quarter", "¾": "three quarters", "⅓": "one third", "²": "squared",
    "³": "cubed", "…": "…", "¢": "cents", "№": "number",
}  # fmt: skip


def cardinal(digits: str) -> str:
    """ "1,250" -> "one thousand two hundred and fifty"; decimals digit by digit."""
    from hibari.g2p import numbers

    whole, _, decimals = digits.replace(",", "").partition(".")
    if len(whole) > 15:
        return each(whole)
    words: str = numbers.cardinal(int(whole)).replace(",", "")
    return f"{words} point {each(decimals)}" if decimals else words


def ordinal(value: int) -> str:
    from hibari.g2p import numbers

    words: str = numbers.ordinal(value)
    return words.replace(",", "")


def year(digits: str) -> str:
    from hibari.g2p import numbers

    words: str = numbers.year(int(digits))
    return words.replace(",", "").replace("oh-", "oh ")


def each(digits: str) -> str:
    """Digit by digit."""
    return " ".join(DIGITS[int(digit)] for digit in digits if digit.isdigit())


def number(digits: str) -> str:
    """A number as it stands in running text: years by halves, ids and leading zeros digit by digit."""
    whole = digits.partition(".")[0]
    if len(whole) > 1 and (whole[0] == "0" or ("," not in whole and len(whole) > 9)):
        return each(whole) + (" point " + each(digits.partition(".")[2]) if "." in digits else "")
    if digits.isdigit() and len(digits) == 4 and 1100 <= int(digits) <= 2099:
        return year(digits)
    return cardinal(digits)


def code(digits: str) -> str:
    """The digits of a model, room or flight: "380" -> "three eighty", "2490" -> "twenty-four ninety"."""
    if len(digits) == 3 and digits[0] != "0" and digits[1:] != "00":
        return f"{cardinal(digits[0])} {_pair(digits[1:])}"
    if len(digits) == 4 and digits[0] != "0" and digits[2:] != "00":
        return f"{cardinal(digits[:2])} {_pair(digits[2:])}"
    return each(digits) if digits[0] == "0" or len(digits) > 4 else cardinal(digits)


def _pair(digits: str) -> str:
    return f"oh {DIGITS[int(digits[1])]}" if digits[0] == "0" else cardinal(digits)


def _plural(unit: str) -> str:
    head, _, rate = unit.partition(" per ")
    many = "feet" if head == "foot" else head if head.endswith("hertz") else head + "s"
    return f"{many} per {rate}" if rate else many


def _is_one(digits: str) -> bool:
    return digits in ("1", "1.0")


def _clock(hour: str, minute: str, second: str | None = None) -> str | None:
    if int(hour) > 24 or int(minute) > 59:
        return None
    words = cardinal(hour) if hour != "00" else "zero"
    words += f" {_pair(minute)}" if minute != "00" else ""
    return f"{words} and {cardinal(second)} second{'' if int(second) == 1 else 's'}" if second else words


def _time(m: re.Match[str]) -> str | None:
    words = _clock(m[1], m[2], m[3])
    if words is None:
        return None
    half = f" {m[4].upper()}.M" if m[4] else ""
    if m[2] == "00" and not half and not m[3]:
        return f"{words} o'clock" if 1 <= int(m[1]) <= 12 else f"{words} hundred"
    return words + half + _stop(m)


def _time_range(m: re.Match[str]) -> str | None:
    ends = [_clock(m[1], m[2]), _clock(m[4], m[5])]
    if ends[0] is None or ends[1] is None:
        return None
    halves = [f" {m[3].upper()}.M" if m[3] else "", f" {m[6].upper()}.M" if m[6] else ""]
    return f"{ends[0]}{halves[0]} to {ends[1]}{halves[1]}"


def _date(y: str | None, month: int, day: int) -> str | None:
    if not (1 <= month <= 12 and 1 <= day <= 31):
        return None
    return f"{_MONTHS[month - 1]} {ordinal(day)}" + (f", {year(y)}" if y else "")


def _slash_date(m: re.Match[str]) -> str | None:
    first, second, y = int(m[1]), int(m[2]), m[3]
    if len(y) == 2:
        y = ("19" if int(y) > 50 else "20") + y
    return _date(y, first, second) or _date(y, second, first)


def _month(name: str) -> str:
    return next(full for full in _MONTHS if full.startswith(name[:3]))


def _month_day(m: re.Match[str]) -> str | None:
    if not 1 <= int(m[2]) <= 31:
        return None
    last = f" to {ordinal(int(m[3]))}" if m[3] else ""
    return f"{_month(m[1])} {ordinal(int(m[2]))}{last}" + (f", {year(m[4])}" if m[4] else "")


def _day_month(m: re.Match[str]) -> str | None:
    if not 1 <= int(m[1]) <= 31:
        return None
    return f"the {ordinal(int(m[1]))} of {_month(m[2])}" + (f" {year(m[3])}" if m[3] else "")


def _money(m: re.Match[str]) -> str:
    sign, symbol, amount, scale = m[1], m[2], m[3], m[4]
    one, many, cent, cents = _CURRENCIES[symbol]
    minus = "minus " if sign else ""
    if scale:
        return f"{minus}{cardinal(amount)} {_SCALES.get(scale.lower(), scale)} {many}"
    whole, _, part = amount.partition(".")
    if len(part) != 2:
        return f"{minus}{cardinal(amount)} {one if _is_one(amount) else many}"
    words = f"{cardinal(whole)} {one if whole == '1' else many}" if int(whole.replace(",", "")) else ""
    small = f"{cardinal(str(int(part)))} {cent if int(part) == 1 else cents}" if int(part) else ""
    return minus + (" and ".join(filter(None, (words, small))) or f"zero {many}")


def _money_range(m: re.Match[str]) -> str:
    scale = f" {_SCALES.get(m[4].lower(), m[4])}" if m[4] else ""
    return f"{cardinal(m[2])} to {cardinal(m[3])}{scale} {_CURRENCIES[m[1]][1]}"


def _phone(m: re.Match[str]) -> str:
    groups = re.findall(r"\d+", m.group())
    return ("plus " if m.group().startswith("+") else "") + ", ".join(each(group) for group in groups)


def _signed(sign: str | None, digits: str) -> str:
    return ("minus " if sign else "") + cardinal(digits)


def _measure(m: re.Match[str]) -> str:
    sign, first, last, unit, power, rate = m.groups()
    low = _signed(sign, first)
    words = _UNITS[unit]
    if power:
        words = {"²": "square ", "2": "square ", "³": "cubic ", "3": "cubic "}[power] + words
    if last or not _is_one(first):
        words = _plural(words)
    per = {"²": " squared", "³": " cubed"}.get(rate[-1], "") if rate else ""
    per = f" per {_UNITS[rate.rstrip('²³')]}{per}" if rate else ""
    return f"{low}{f' to {cardinal(last)}' if last else ''} {words}{per}"


def _degrees(m: re.Match[str]) -> str:
    sign, first, last, scale = m.groups()
    words = "degree" if _is_one(first) and not last else "degrees"
    scale = {"C": " Celsius", "F": " Fahrenheit"}.get(scale or "", "")
    return f"{_signed(sign, first)}{f' to {cardinal(last)}' if last else ''} {words}{scale}"


def _percent(m: re.Match[str]) -> str:
    return f"{_signed(m[1], m[2])}{f' to {cardinal(m[3])}' if m[3] else ''} percent"


def _fraction(m: re.Match[str]) -> str | None:
    whole, top, bottom = m[1], int(m[2]), int(m[3])
    if not 1 < bottom <= 100 or not 0 < top < 100:
        return None
    part = {2: "half", 4: "quarter"}.get(bottom) or ordinal(bottom)
    many = "halves" if part == "half" else part + "s"
    if top >= bottom:
        return f"{cardinal(m[2])} over {cardinal(m[3])}"
    if whole:
        return f"{cardinal(whole)} and {'a' if top == 1 else cardinal(m[2])} {part if top == 1 else many}"
    return f"{cardinal(m[2])} {part if top == 1 else many}"


def _feet(m: re.Match[str]) -> str | None:
    return f"{cardinal(m[1])} foot {cardinal(m[2])}" if m[2] else None


def _dotted(m: re.Match[str]) -> str:
    parts = m.group().split(".")
    spell = each if len(parts) == 4 else cardinal
    return " point ".join(spell(part) for part in parts) if len(parts) < 4 else " dot ".join(map(each, parts))


def _decade(m: re.Match[str]) -> str:
    digits = m[1] or m[2] or m[3]
    words = year(digits) if len(digits) == 4 else cardinal(digits)
    return words[:-1] + "ies" if words.endswith("y") else words + "s"


def _range(m: re.Match[str]) -> str:
    return f"{number(m[1])} to {number(m[2])}"


def _roman(text: str) -> int:
    values = [{"I": 1, "V": 5, "X": 10, "L": 50, "C": 100}[letter] for letter in text]
    return sum(-v if v < max(values[i:]) else v for i, v in enumerate(values))


def _stop(m: re.Match[str]) -> str:
    """The point of an abbreviation at the end of a clause ends the sentence too."""
    return "." if m.group().endswith(".") and m.end() == len(m.string.rstrip()) else ""


def _gap(m: re.Match[str]) -> str:
    """A space between digits and the letters that follow them: 4K, 10x."""
    return " " if m.string[m.end() : m.end() + 1].isalpha() else ""


def _in_code(m: re.Match[str]) -> str:
    return f" {code(m[1])}{_gap(m)}"


def _symbol(m: re.Match[str]) -> str:
    return f" {_SYMBOLS[m.group()]} "


def _abbreviation(m: re.Match[str]) -> str:
    return _ABBREVIATIONS[m.group()] + _stop(m)


RULES: tuple[Rule, ...] = (
    *MARKDOWN,
    *ADDRESSES,
    (
        re.compile(
            r"(?<![\d:])(\d{1,2}):(\d{2})(?:\s?([AaPp])\.?[Mm]\.?)?\s?[-–—]\s?(\d{1,2}):(\d{2})"
            r"(?:\s?([AaPp])\.?[Mm]\b\.?)?(?![\d:])"
        ),
        _time_range,
    ),
    (
        re.compile(r"(?<![\d:])(\d{1,2}):(\d{2})(?::(\d{2}))?(?:\s?([AaPp])(?:\.[Mm]\.|[Mm]\b))?(?![\d:])"),
        _time,
    ),
    (
        re.compile(rf"(?<![\w.])(\d{{1,2}})\s?([AaPp])\.?[Mm]\.?{_DASH}(\d{{1,2}})\s?([AaPp])\.?[Mm]\b\.?"),
        lambda m: f"{cardinal(m[1])} {m[2].upper()}.M to {cardinal(m[3])} {m[4].upper()}.M",
    ),
    (
        re.compile(r"(?<![\w.])(\d{1,2})\s?([AaPp])(?:\.[Mm]\.|[Mm]\b)"),
        lambda m: f"{cardinal(m[1])} {m[2].upper()}.M" + _stop(m),
    ),
    (re.compile(r"(?<![\w-])(\d{4})-(\d{2})-(\d{2})(?![\w-])"), lambda m: _date(m[1], int(m[2]), int(m[3]))),
    (re.compile(r"(?<![\w/])(\d{1,2})/(\d{1,2})/(\d{4}|\d{2})(?![\w/])"), _slash_date),
    (
        re.compile(rf"\b({_MONTH}) (\d{{1,2}})(?:st|nd|rd|th)?(?:[-–](\d{{1,2}}))?\b(?![\d:%,]\d)(?:,? (\d{{4}})\b)?"),
        _month_day,
    ),
    (re.compile(rf"(?<![\w.,])(?:the )?(\d{{1,2}})(?:st|nd|rd|th)?(?: of)? ({_MONTH})(?:,? (\d{{4}}))?\b"), _day_month),
    (re.compile(r"(?<![\w.+])\+?\d{0,3}[ -]?\(\d{3}\)[ -]?\d{3}[- ]\d{4}(?!\d)"), _phone),
    (re.compile(r"(?<![\w.+])\+\d{1,3}(?:[ -]\d{2,5}){2,5}(?![\w-])"), _phone),
    (re.compile(r"(?<![\w.\-])(?:1-)?(?:\d{3}[-.])?\d{3}[-.]\d{4}(?![\w-])"), _phone),
    (re.compile(r"(?<!\w)[’'](\d0)s\b|(?<![\w.])([12]\d\d0)['’]?s\b|(?<=the )([2-9]0)['’]?s\b"), _decade),
    (re.compile(r"(?<![\w.-])\d+(?:-\d+){2,}(?![\w-])"), _phone),
    (re.compile(rf"({_CURRENCY})\s?({_NUM}){_DASH}[$£€¥]?({_NUM}){_SCALE}(?![\w%])"), _money_range),
    (re.compile(rf"(-)?(?<![A-Za-z])({_CURRENCY})\s?({_NUM}){_SCALE}(?!\d)"), _money),
    (re.compile(rf"({_NUM})\s?¢"), lambda m: f"{cardinal(m[1])} cent{'' if _is_one(m[1]) else 's'}"),
    (re.compile(rf"(?<![\w.])([-−])?({_NUM})(?:°?{_DASH}({_NUM}))?\s?°\s?([CF])?(?!\w)"), _degrees),
    (
        re.compile(
            rf"(?<![\w.])([-−])?({_NUM})(?:{_DASH}({_NUM}))?[ -]?({_UNIT})([²³23])?(?:/((?:{_UNIT})[²³]?))?(?!\w|['’/])"
        ),
        _measure,
    ),
    (re.compile(rf"(?<![\w.])([-−])?({_NUM})%?(?:{_DASH}({_NUM}))?\s?%"), _percent),
    (re.compile(r"(?<![\w.])(\d+)[’'′](?:(\d{1,2})[\"”″])?"), _feet),
    (re.compile(r"(?<![\w./])24/7(?![\w/])"), lambda m: "twenty-four seven"),
    (re.compile(r"(?<![\w./])(?:(\d+)[ -])?(\d{1,2})/(\d{1,3})(?![\w/])"), _fraction),
    (re.compile(r"(?<![\w.])\d+(?:\.\d+){2,}(?!\w)"), _dotted),
    (re.compile(r"(?<![\w.])(\d+)(?:st|nd|rd|th)\b"), lambda m: ordinal(int(m[1]))),
    (re.compile(r"\bNo\. ?(?=\d)|(?<!\w)#(?=\d)"), lambda m: "number "),
    (re.compile(r"(?<!\w)#(?=[A-Za-z])"), lambda m: "hashtag "),
    (re.compile(r"(?<=\b[A-G])#"), lambda m: " sharp"),
    (
        re.compile(rf"\b({_COUNTED}) ({_ROMAN})\b(?!['’.]\w)"),
        lambda m: f"{m[1]} {cardinal(str(_roman(m[2])))}",
    ),
    (
        re.compile(rf"\b({_REGENT}) ({_ROMAN})\b(?!['’.]\w)"),
        lambda m: f"{m[1]} the {ordinal(_roman(m[2]))}",
    ),
    (re.compile(r"\b(Mr|Mrs|Ms)\.? (?=[A-Z&])"), lambda m: _TITLES[m[1]] + " "),
    (re.compile(rf"\b({'|'.join(_TITLES)})\.? (?=[A-Z])"), lambda m: _TITLES[m[1]] + " "),
    (re.compile(rf"(?<![\w.])(?:{_ABBREVIATION})(?!\w)"), _abbreviation),
    # Letters around an ampersand are names of letters, not a word: AT&T.
    (re.compile(r"\b([A-Z]{1,3})\s?&\s?([A-Z]{1,3})\b"), lambda m: f"{'.'.join(m[1])} and {'.'.join(m[2])}"),
    (re.compile(r"(?<=[A-Za-z])-?(\d+)(?![\d.,]*\d)"), _in_code),
    (
        re.compile(r"\b(Room|Flight|Bus|Highway|Route|Apartment|Suite|Gate) (\d{3,4})\b", re.IGNORECASE),
        lambda m: f"{m[1]} {code(m[2])}",
    ),
    (re.compile(rf"({_NUM})\s*[-−]\s*(?=(?:{_NUM})\s*=)"), lambda m: f"{cardinal(m[1])} minus "),
    (
        re.compile(r"(?<![\w.])(\d(?:\.\d+)?)[eE]([-−])?\+?(\d+)\b"),
        lambda m: f"{cardinal(m[1])} times ten to the power of {_signed(m[2], m[3])}",
    ),
    (re.compile(r"(?<![\w.,])\d{1,3}(?: \d{3})+(?![\w.,]*\d)"), lambda m: cardinal(m[0].replace(" ", ""))),
    (re.compile(r"(?<=\d)\s?[*x×]\s?(?=\d)"), lambda m: " times "),
    (re.compile(rf"(?<![\w.\-])({_NUM}){_DASH}({_NUM})(?![\w\-]|\.\d)"), _range),
    (re.compile(rf"(?<![\w.\-])[-−]({_NUM})"), lambda m: "minus " + cardinal(m[1])),
    (re.compile(r"(?<![\d.])\.(\d+)\b"), lambda m: "point " + each(m[1])),
    (re.compile(rf"({_NUM})(?![\d,]*\d)"), lambda m: number(m[1]) + _gap(m)),
    (re.compile(r"\^2\b"), lambda m: " squared"),
    (re.compile(r"\^3\b"), lambda m: " cubed"),
    (re.compile(r"\^(?=[\w(-])"), lambda m: " to the power of "),
    (re.compile(r"(?<!\S)[~≈](?=\s?\d)"), lambda m: "about "),
    (re.compile(r"(?<!\S)<(?=\s?\d)|(?<=\s)<(?=\s)"), lambda m: "less than "),
    (re.compile(r"(?<!\S)>(?=\s?\d)|(?<=\s)>(?=\s)"), lambda m: "greater than "),
    (re.compile(r"(?<=\w)/(?=\w)"), lambda m: " slash "),
    (re.compile(f"[{''.join(map(re.escape, _SYMBOLS))}]"), _symbol),
    (re.compile(f"[{''.join(GREEK)}]"), lambda m: f" {GREEK[m[0]]} "),
    (re.compile(r"(?<=\w)_(?=\w)"), lambda m: " "),
    (re.compile(r"(?m)^\s*[-–—]+\s*$"), silent),
    *SILENT,
)
