"""Chats exported as JSON or tables: Telegram's, Discord's, Slack's and ChatGPT's.

Forms: Telegram Desktop's result.json (machine-readable JSON); DiscordChatExporter's
JsonMessageWriter.cs and CsvMessageWriter.cs; Slack's export of a workspace
(slack.com/help/articles/220556107); ChatGPT's conversations.json.
"""

import datetime
import html
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from gptj_lab.corpora.chats import Chat, Message
from gptj_lab.corpora.examples import Turn, Unclear

DISCORD_COLUMNS = {"AuthorID", "Author", "Date", "Content"}
_DISCORD_SAID = {"Default", "Reply", "0", "19"}  # kinds of messages that people write
_SLACK_LISTS = ("channels.json", "groups.json", "dms.json", "mpims.json")
_SLACK_SAID = {None, "thread_broadcast", "bot_message", "me_message", "file_share"}
_SLACK_LINK = re.compile(r"<([@#!]?)([^<>|]*)(?:\|([^<>]*))?>")


def of_object(value: Mapping[str, Any]) -> Iterator[Chat] | None:
    """The chats of an exported object, made one by one; None of another object."""
    messages = value.get("messages")
    if isinstance(messages, list) and {"guild", "channel"} <= value.keys():
        return map(_discord, [value])
    if isinstance(messages, list) and {"type", "id"} <= value.keys():
        return map(_telegram, [value])
    if isinstance(value.get("chats"), Mapping) and isinstance(value["chats"].get("list"), list):
        return map(_telegram, value["chats"]["list"])
    return None


def _telegram(chat: Mapping[str, Any]) -> Chat:
    messages, left_out = [], 0
    for entry in chat.get("messages", []):
        text = entry.get("text", "")
        if isinstance(text, list):  # words and entities: bold, links, ...
            parts = (part.get("text", "") if isinstance(part, Mapping) else part for part in text)
            text = "".join(map(str, parts))
        who = entry.get("from")
        if entry.get("type") != "message" or not isinstance(who, str) or not text.strip():
            left_out += 1
            continue
        moment = entry.get("date_unixtime")
        seconds = float(moment) if moment is not None else _iso(entry.get("date"))
        messages.append(Message(who, text.strip(), seconds))
    return Chat("Telegram", messages, left_out, str(chat.get("name") or ""))


def _discord(export: Mapping[str, Any]) -> Chat:
    messages, left_out = [], 0
    for entry in export["messages"]:
        author = entry.get("author") or {}
        who = author.get("nickname") or author.get("name")
        words = str(entry.get("content") or "").strip()
        if str(entry.get("type", "Default")) not in _DISCORD_SAID or not words or not who:
            left_out += 1
            continue
        messages.append(Message(str(who), words, _iso(entry.get("timestamp"))))
    return Chat("Discord", messages, left_out, str(export["channel"].get("name") or ""))


def discord_rows(rows: Iterable[Mapping[str, str]]) -> Chat:
    """The chat of DiscordChatExporter's .csv."""
    messages, left_out = [], 0
    for row in rows:
        if words := row["Content"].strip():
            messages.append(Message(row["Author"], words, _iso(row["Date"])))
        else:
            left_out += 1
    return Chat("Discord", messages, left_out)


def _iso(date: Any) -> float | None:
    """Seconds of a date in ISO's form; None of another."""
    if not isinstance(date, str):
        return None
    short = re.sub(r"(\.\d{6})\d+", r"\1", date)  # .NET writes seven digits
    try:
        moment = datetime.datetime.fromisoformat(short)
    except ValueError:
        return None
    return moment.replace(tzinfo=moment.tzinfo or datetime.UTC).timestamp()


def is_slack_message(value: Any) -> bool:
    """Whether a JSON value is a message of a day's file."""
    return isinstance(value, Mapping) and value.get("type") == "message" and "ts" in value


def is_slack_folder(names: Iterable[str]) -> bool:
    """Whether a folder with files of these names is an export of Slack's."""
    names = set(names)
    return "users.json" in names and bool(names & set(_SLACK_LISTS))


def slack_folder(folder: Path) -> Iterator[Chat]:
    """The chats of an export's folder, a channel's days in order.

    Raises:
        ValueError: one of its files isn't valid JSON.
    """
    people = {}
    for user in _json(folder / "users.json"):
        profile = user.get("profile") or {}
        names = (profile.get("display_name"), profile.get("real_name"), user.get("name"))
        people[user.get("id")] = next((name for name in names if name), user.get("id"))
    for channel in sorted(path for path in folder.iterdir() if path.is_dir()):
        days = sorted(channel.glob("*.json"))
        if days and not channel.name.startswith("."):
            messages = (message for day in days for message in _json(day))
            yield slack(messages, people, channel.name)


def _json(path: Path) -> list[Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name} of Slack's export isn't valid JSON: {error}") from error
    return (
        [entry for entry in found if isinstance(entry, Mapping)] if isinstance(found, list) else []
    )


def slack(messages: Iterable[Any], people: Mapping[Any, Any], name: str = "") -> Chat:
    """The chat of Slack's messages; `people` are their names by id."""
    found, left_out = [], 0
    for entry in messages:
        profile = entry.get("user_profile") or {}
        who = people.get(entry.get("user")) or profile.get("display_name") or (
            profile.get("real_name") or entry.get("username") or entry.get("user")
        )  # fmt: skip
        words = _slack_words(str(entry.get("text") or ""), people).strip()
        if (
            not is_slack_message(entry)
            or entry.get("subtype") not in _SLACK_SAID
            or not (words and who)
        ):
            left_out += 1
            continue
        found.append(Message(str(who), words, float(entry["ts"])))
    found.sort(key=lambda message: message.seconds or 0.0)
    return Chat("Slack", found, left_out, name)


def _slack_words(text: str, people: Mapping[Any, Any]) -> str:
    """Slack's marks as people see them: <@U1> is @Anna, <https://a.b|here> is here."""

    def shown(match: re.Match[str]) -> str:
        mark, target, label = match.groups()
        if mark == "@":
            return f"@{people.get(target) or label or target}"
        return f"{mark.replace('!', '@')}{label or target}"

    return html.unescape(_SLACK_LINK.sub(shown, text))


def chatgpt_turns(row: Mapping[Any, Any]) -> list[Turn]:
    """The turns of a conversation in ChatGPT's export: a tree, the branch that was shown last.

    Raises:
        Unclear: its nodes don't lead from the last to the first.
    """
    nodes, turns, at = row["mapping"], [], row["current_node"]
    for _ in range(len(nodes) + 1):
        if at is None:
            return turns[::-1]
        node = nodes.get(at) if isinstance(nodes, Mapping) else None
        if not isinstance(node, Mapping):
            break
        at, message = node.get("parent"), node.get("message") or {}
        role = (message.get("author") or {}).get("role")
        parts = (message.get("content") or {}).get("parts") or []
        words = "\n".join(part for part in parts if isinstance(part, str)).strip()
        if words and role in ("system", "user", "assistant"):
            turns.append(Turn(role, words))
    raise Unclear("its mapping doesn't lead from current_node to a first message")
