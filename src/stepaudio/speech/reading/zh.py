"""Chinese readings: numbers, dates, money, units and symbols in Chinese words, also around Latin letters."""

from __future__ import annotations

import re

from stepaudio.speech.reading import HAN, Rule
from stepaudio.speech.reading.common import ADDRESSES, GREEK, MARKDOWN, SILENT

_NUM = r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?"
_TO = r"\s?[-–—~～至]\s?"
_SCALE = r"(万亿|千万|百万|[百千万亿])?"
_CURRENCIES = {
    "¥": "元", "￥": "元", "$": "美元", "US$": "美元", "€": "欧元", "£": "英镑", "HK$": "港元", "₩": "韩元",
    "RMB": "元", "CNY": "元", "USD": "美元", "EUR": "欧元",
}  # fmt: skip
_CURRENCY = "|".join(sorted(map(re.escape, _CURRENCIES), key=len, reverse=True))
_UNITS = {
    "km/h": "公里每小时", "m/s": "米每秒", "km²": "平方公里", "km2": "平方公里", "m²": "平方米", "m2": "平方米",
    "㎡": "平方米", "cm²": "平方厘米", "m³": "立方米", "m3": "立方米", "cm³": "立方厘米", "km": "公里", "m": "米",
    "cm": "厘米", "mm": "毫米", "nm": "纳米", "μm": "微米", "kg": "公斤", "g": "克", "mg": "毫克", "t": "吨",
    "L": "升", "l": "升", "ml": "毫升", "mL": "毫升", "h": "小时", "min": "分钟", "s": "秒", "ms": "毫秒",
    "kWh": "千瓦时", "kW": "千瓦", "W": "瓦", "V": "伏", "Hz": "赫兹", "kHz": "千赫", "MHz": "兆赫", "GHz": "吉赫兹",
    "dB": "分贝", "mAh": "毫安时", "kcal": "千卡", "Pa": "帕", "kPa": "千帕", "MB/s": "兆每秒", "Mbps": "兆比特每秒",
}  # fmt: skip
_UNIT = "|".join(sorted(map(re.escape, _UNITS), key=len, reverse=True))
# 2 is read 两 before a measure word, 二 everywhere else (二月, 二号, 二楼, 第二, 十二个).
_MEASURES = (
    "个|位|名|只|条|张|本|件|次|天|年|岁|小时|分钟|秒钟|点|周|星期|代|种|家|块|元|美元|欧元|杯|瓶|碗|斤|公斤|千克|公里|"
    "千米|米|厘米|毫米|吨|克|升|倍|台|辆|部|套|座|间|层|双|对|份|封|首|场|支|把|根|棵|头|匹|架|艘|颗|片|群|排|句|页|"
    "遍|趟|回|步|口|季|晚|人|成|米每秒|平方米|平方公里|立方米|万|亿|千|大|幅|门|节|道|股|届|者|分之"
)
_ONLY_TWO = re.compile(rf"(?:{_MEASURES})(?!号线|月份)")
_SYMBOLS = {
    "&": "和", "@": "艾特", "+": "加", "=": "等于", "×": "乘以", "÷": "除以", "±": "正负", "≤": "小于等于",
    "≥": "大于等于", "≠": "不等于", "≈": "约等于", "√": "根号", "∞": "无穷大", "%": "百分号", "°": "度", "℃": "摄氏度",
    "①": "一", "②": "二", "③": "三", "④": "四", "⑤": "五", "⑥": "六", "⑦": "七", "⑧": "八", "⑨": "九", "⑩": "十",
    "½": "二分之一", "¼": "四分之一", "¾": "四分之三", "²": "平方", "³": "立方", "→": "到", "№": "第",
    "Ⅰ": "一", "Ⅱ": "二", "Ⅲ": "三", "Ⅳ": "四", "Ⅴ": "五", "Ⅵ": "六",
}  # fmt: skip
_WIDE = {ord("０") + i: str(i) for i in range(10)}


def cardinal(digits: str) -> str:
    """ "1,250" -> 一千二百五十; "20000" -> 两万; a point is followed by single digits."""
    import cn2an

    whole, _, decimals = digits.translate(_WIDE).replace(",", "").partition(".")
    if len(whole) > 16:
        return each(whole)
    words: str = cn2an.an2cn(str(int(whole)), "low")
    # Where a scale word follows, 2 at the head of a number is said 两 (but 二十, and 二百 may stay).
    words = re.sub("^二(?=[千万亿])|(?<=[万亿])二(?=千)", "两", words)
    return f"{words}点{each(decimals)}" if decimals else words


def each(digits: str, *, one: str = "一") -> str:
    """Digit by digit; telephone and room numbers say 幺 for 1."""
    return "".join(("零", one, *"二三四五六七八九")[int(digit)] for digit in digits if digit.isdigit())


def number(digits: str) -> str:
    whole = digits.partition(".")[0]
    if "," not in whole and ((len(whole) > 1 and whole[0] == "0") or len(whole) > 9):
        return each(whole) + (f"点{each(digits.partition('.')[2])}" if "." in digits else "")
    return cardinal(digits)


def _counted(digits: str, follows: str) -> str:
    """A number before what is counted."""
    if digits == "2" and _ONLY_TWO.match(follows):
        return "两"
    return number(digits)


def _signed(sign: str | None, digits: str) -> str:
    return ("负" if sign else "") + cardinal(digits)


def _clock(hour: str, minute: str, second: str | None) -> str | None:
    if int(hour) > 24 or int(minute) > 59:
        return None
    words = ("两" if int(hour) == 2 else cardinal(hour)) + "点"
    if minute == "30" and not second:
        return words + "半"
    if minute != "00" or second:
        words += ("零" if minute[0] == "0" else "") + (cardinal(minute) if minute != "00" else "") + "分"
    else:
        words += "整"
    return words + (f"{'零' if second[0] == '0' else ''}{cardinal(second)}秒" if second else "")


def _time(m: re.Match[str]) -> str | None:
    return _clock(m[1], m[2], m[3])


def _time_range(m: re.Match[str]) -> str | None:
    first, last = _clock(m[1], m[2], None), _clock(m[3], m[4], None)
    return f"{first.removesuffix('整')}到{last.removesuffix('整')}" if first and last else None


def _date(m: re.Match[str]) -> str | None:
    month, day = int(m[3]), int(m[4])
    if not (1 <= month <= 12 and 1 <= day <= 31):
        return None
    return f"{each(m[1])}年{cardinal(m[3])}月{cardinal(m[4])}日"


def _money(m: re.Match[str]) -> str:
    sign, currency, first, last, scale = m.groups()
    amount = _signed(sign, first) + (f"到{cardinal(last)}" if last else "") + (scale or "")
    amount = "两" if amount == "二" else amount
    return amount + _CURRENCIES[currency]


def _degrees(m: re.Match[str]) -> str:
    sign, first, minus, last, unit = m.groups()
    words = "摄氏度" if unit in ("℃", "°C") else "华氏度" if unit in ("℉", "°F") else "度"
    low = ("零下" if sign else "") + cardinal(first)
    return low + (f"到{'零下' if minus else ''}{cardinal(last)}" if last else "") + words


def _percent(m: re.Match[str]) -> str:
    base = "百分之" if m[4] in "%％" else "千分之"
    first = ("负" if m[1] else "") + base + cardinal(m[2])
    return f"{first}到{base}{cardinal(m[3])}" if m[3] else first


def _measure(m: re.Match[str]) -> str:
    sign, first, last, scale, unit = m.groups()
    words = _UNITS[unit]
    low = "两" if first == "2" and not (scale or last) else cardinal(first)
    return ("负" if sign else "") + low + (f"到{cardinal(last)}" if last else "") + (scale or "") + words


def _fraction(m: re.Match[str]) -> str | None:
    if not int(m[2]):
        return None
    return f"{cardinal(m[2])}分之{cardinal(m[1])}"


def _phone(m: re.Match[str]) -> str:
    groups = re.findall(r"\d+", m.group())
    if len(groups) == 1 and len(groups[0]) == 11:
        groups = [groups[0][:3], groups[0][3:7], groups[0][7:]]
    return ("加" if m.group().startswith("+") else "") + "，".join(each(group, one="幺") for group in groups)


def _range(m: re.Match[str]) -> str:
    follows = m.string[m.end() :]
    return f"{_counted(m[1], follows)}到{_counted(m[2], follows)}"


def _number(m: re.Match[str]) -> str:
    return _counted(m[0].translate(_WIDE), m.string[m.end() :].lstrip())


RULES: tuple[Rule, ...] = (
    *MARKDOWN,
    *ADDRESSES,
    (re.compile(rf"(\d{{1,2}})[:：](\d{{2}}){_TO}(\d{{1,2}})[:：](\d{{2}})(?!\d)"), _time_range),
    (re.compile(r"(?<![\d:：])([01]?\d|2[0-4])[:：]([0-5]\d)(?:[:：]([0-5]\d))?(?![\d:：])"), _time),
    (re.compile(r"(?<!\d)(\d+)[:：](\d+)(?!\d)"), lambda m: f"{cardinal(m[1])}比{cardinal(m[2])}"),
    (re.compile(r"(?<![\d-])(\d{4})([-/.])(\d{1,2})\2(\d{1,2})(?![\d-])"), _date),
    (re.compile(rf"(\d{{4}}){_TO}(\d{{4}})(?=年)"), lambda m: f"{each(m[1])}到{each(m[2])}"),
    (re.compile(r"(?<!\d)(\d{4}|0\d)(?=\s?(?:年(?![之以]?[前后内间])|届))"), lambda m: each(m[1])),
    (re.compile(r"(?:\+?86[ -]?)?(?<!\d)1[3-9]\d[ -]?\d{4}[ -]?\d{4}(?!\d)"), _phone),
    (re.compile(r"(?<!\d)(?:0\d{2,3}[- ]\d{7,8}|[48]00[- ]?\d{3,4}[- ]?\d{3,4})(?!\d)"), _phone),
    (
        re.compile(
            r"(?<=[打拨])\d{3,8}(?!\d|[个次场份])|(?:(?<=电话|热线|号码)|(?<=[话线码][是为：:]))\d{3,12}(?![\d个])"
            r"|(?<!\d)(?:110|119|120|12345|12306|10086|10010)(?=电话|热线|报警|急救|平台)"
        ),
        lambda m: each(m[0], one="幺"),
    ),
    (re.compile(rf"([-−])?({_CURRENCY})\s?({_NUM})(?:{_TO}(?:{_CURRENCY})?({_NUM}))?\s?{_SCALE}"), _money),
    (re.compile(rf"(?<!\d)([-−])?({_NUM})(?:[℃°]?C?{_TO}([-−])?({_NUM}))?\s?(℃|℉|°C|°F|°|摄氏度|华氏度)"), _degrees),
    (re.compile(rf"(?<![\d.])([-−])?({_NUM})[%％]?(?:{_TO}({_NUM}))?\s?([%％‰])"), _percent),
    (
        re.compile(rf"(?<![\w.])([-−])?({_NUM})(?:{_TO}({_NUM}))?\s?{_SCALE}\s?({_UNIT})(?![A-Za-z0-9/])", re.A),
        _measure,
    ),
    (re.compile(r"(?<![\d/.])(\d+)/(\d+)(?![\d/])"), _fraction),
    (re.compile(r"(?<![\w.])\d+(?:\.\d+){2,}", re.A), lambda m: "点".join(cardinal(part) for part in m[0].split("."))),
    # Rooms, buses, flights and trains: the digits, one by one.
    (
        re.compile(r"(?<!\d)\d{3,5}(?=\s?(?:路|室|房|号房|号楼|航班|次列车))"),
        lambda m: each(m[0], one="幺"),
    ),
    (re.compile(r"(?<=[A-Za-z])-?(\d{3,})(?!\d)"), lambda m: " " + each(m[1], one="幺")),
    (re.compile(r"(?<=[A-Za-z])-?(\d{1,2})(?![\d.])"), lambda m: " " + cardinal(m[1])),
    (re.compile(r"(?<!\d)(\d+)\s*[-−]\s*(?=\d+\s*=)"), lambda m: f"{cardinal(m[1])}减"),
    (
        re.compile(rf"(?<!\d)([1-9])、([1-9])(?=(?:{_MEASURES}))"),
        lambda m: ("两" if m[1] == "2" else each(m[1])) + each(m[2]),
    ),
    (re.compile(rf"(?<![\w.-])({_NUM}){_TO}({_NUM})(?![\d-])", re.A), _range),
    (re.compile(rf"(?<![\w.])[-−]({_NUM})", re.A), lambda m: "负" + cardinal(m[1])),
    (re.compile(r"(?<=第)\d+"), lambda m: cardinal(m[0])),
    (re.compile(rf"(?:{_NUM})|[０-９]+"), _number),
    (re.compile(r"(?<=\d)\s?[*x×]\s?(?=\d)"), lambda m: "乘"),
    (re.compile(r"(?<![\w])[~～约≈](?=\s?\d)"), lambda m: "约"),
    (re.compile(r"\s?>\s?(?=\d)"), lambda m: "大于"),
    (re.compile(r"\s?<\s?(?=\d)"), lambda m: "小于"),
    (re.compile(r"(?<=[A-Za-z])/(?=[A-Za-z])"), lambda m: " slash "),
    (re.compile("和/或"), lambda m: "和或"),
    (re.compile(rf"(?<=[{HAN}])/(?=[{HAN}])"), lambda m: "或"),
    (re.compile(r"#(?=\w)"), lambda m: "井号"),
    (re.compile(r"(?<=[CF])#"), lambda m: " sharp"),
    (re.compile(r"(?<=[A-Za-z])\s?&\s?(?=[A-Za-z])"), lambda m: " and "),
    (re.compile(r"(?<=[A-Za-z])\++"), lambda m: " plus" * len(m[0])),
    (re.compile(f"[{''.join(map(re.escape, _SYMBOLS))}]"), lambda m: _SYMBOLS[m[0]]),
    (re.compile(f"[{''.join(GREEK)}]"), lambda m: f" {GREEK[m[0]]} "),
    (re.compile(r"(?<=[A-Za-z])_(?=[A-Za-z])"), lambda m: " "),
    *SILENT,
)
