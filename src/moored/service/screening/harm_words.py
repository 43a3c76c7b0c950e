# SPDX-License-Identifier: Apache-2.0
"""Words that rules about harm share, and how a pattern is made of an act and its object."""

from __future__ import annotations

OPENERS: dict[str, str] = {}
"""What the acts of a pattern begin with: without such a word in a text, the pattern need not be tried."""


def near(acts: str, objects: str, words: int = 5) -> str:
    """A pattern: an act with its object at most so many words behind it.

    Args:
        acts: alternatives of a regular expression; their first words are words, without groups in front.
        objects: alternatives.
        words: between the two.
    """
    pattern = rf"\b(?:{acts})\b(?:[ ,'\"-]+[\w-]+){{0,{words}}}?[ ,'\"-]+(?:{objects})\b"
    OPENERS[pattern] = _first_words(acts)
    return pattern


def _first_words(acts: str) -> str:
    """The first words of alternatives, as alternatives."""
    firsts, depth, whole = [""], 0, True
    for letter in acts:
        depth += (letter in "([") - (letter in ")]")
        if depth == 0 and letter == "|":
            firsts, whole = [*firsts, ""], True
        elif depth == 0 and letter in " -":
            whole = False
        elif whole:
            firsts[-1] += letter
    return "|".join(first.partition("[- ]")[0] for first in firsts)


_FRAME = (
    r"(?:how (?:to|do|does|can|could|would|should|might)|ways?|steps?|tips|tricks|guide|plan"
    r"|instructions?|tutorial|advice|checklist"
    r"|strateg(?:y|ies)|methods?|want to|need to|decided to|like to|going to|love to|help me"
    r"|help someone|teach|tell|show"
    r"|explain|describe|outline|provide|write|draft|compose|create|generate|develop|design|make|list|suggest|devise"
    r"|identify|ideas?|script|program|here is|do this)"
)
"""What asks for a task, and how answers to it begin."""


def asked(acts: str) -> str:
    """A pattern: an act that is asked for, whatever its object.

    Args:
        acts: see `near`.
    """
    pattern = rf"\b{_FRAME}\b(?:[ ,'\"-]+[\w-]+){{0,9}}?[ ,'\"-]+(?:{acts})\b"
    OPENERS[pattern] = _first_words(acts)
    return pattern


MAKE = (
    r"mak(?:e|es|ing)|build(?:s|ing)?|creat(?:e|es|ing)|construct(?:s|ing)?|assembl(?:e|es|ing)|produc(?:e|es|ing)"
    r"|manufactur(?:e|es|ing)|design(?:s|ing)?|develop(?:s|ing)?|writ(?:e|es|ing)|print(?:s|ing)?|cod(?:e|es|ing)"
    r"|generat(?:e|es|ing)|compos(?:e|es|ing)|draft(?:s|ing)?"
)
SPEAK = (
    r"writ(?:e|es|ing)|compos(?:e|es|ing)|draft(?:s|ing)?|creat(?:e|es|ing)|generat(?:e|es|ing)|tell|spread(?:s|ing)?"
    r"|publish(?:es|ing)?|post(?:s|ing)?|giv(?:e|es|ing)|produc(?:e|es|ing)|say|sing|invent|design|develop|make"
)
GET = (
    r"buy(?:s|ing)?|sell(?:s|ing)?|get(?:s|ting)?|obtain(?:s|ing)?|acquir(?:e|es|ing)|smuggl(?:e|es|ing)"
    r"|deal(?:s|ing)?|traffic(?:s|king)?|import|order|find|grow(?:s|ing)?|cook(?:s|ing)?|us(?:e|es|ing)|tak(?:e|es|ing)"
)
SOMEBODY = (
    r"someone|somebody|people|a person|another person|person|man|woman|girl|boy|child|children|kids?|wife|husband"
    r"|spouse|boyfriend|girlfriend|ex|partner|neighbou?r|boss|colleague|co-?worker|teacher|student|pupil|classmate"
    r"|enem(?:y|ies)|rival|victims?|witness|stranger|friend|mother|father|mom|dad|parents?|brother|sister|baby|toddler"
    r"|daughter|son|teen(?:ager)?s?|minors?|elderly|patient|guests?|customers?|employees?|officer|police(?:man)?|cop"
    r"|driver|prisoner|politician|president|mayor|minister|senator|journalist|reporter|celebrity|businessman|homeless"
)
GROUP = (
    r"jew(?:s|ish)?|muslims?|islam|christians?|hindus?|blacks?|black (?:people|men|women)|white (?:people|men|women)"
    r"|africans?|asians?|chinese|mexicans?|arabs?|russians?|indians?|latin[oax]s?|hispanics?|gypsies|roma|refugees?"
    r"|immigrants?|migrants?|foreigners?|gays?|lesbians?|homosexuals?|lgbt\w*|trans(?:gender)?|queers?|women|men|girls"
    r"|disabled|wheelchairs?|autistic|fat people|poor people|minorit(?:y|ies)|minority groups?|races?|religions?"
    r"|ethnic\w*|protected group"
)
WEAPON = (
    r"(?:pipe |dirty |nail |car |letter |time |molotov )?bombs?|explosives?|grenades?|molotov\w*|detonators?|ieds?"
    r"|land ?mines?|firecrackers?|guns?|pistols?|rifles?|firearms?|silencers?|ammunition|ghost guns?|weapons?|ak-?47s?"
    r"|nerve (?:gas|agents?)|poison gas|sarin|ricin|anthrax|chemical weapons?|bio(?:logical)? ?weapons?|napalm|thermite"
)
DRUG = (
    r"meth(?:amphetamine)?s?|cocaine|crack|heroin|fentanyl|lsd|mdma|ecstasy|ketamine|ghb|opioids?|opium|cannabis|weed"
    r"|marijuana|roofies?|date[- ]rape drugs?|(?:illegal|illicit|hard|banned|party) (?:drugs?|substances?)|steroids"
    r"|drug (?:lab|ring|deal\w*|cartel)|narcotics"
)
SECRET = (
    r"passwords?|credit cards?|card (?:numbers?|data|details)|bank accounts?|accounts?|identit(?:y|ies)"
    r"|personal (?:information|data|details)|sensitive (?:\w+ )?(?:information|data)"
    r"|confidential (?:\w+ )?(?:information"
    r"|data|files?)|user data|login (?:credentials|details)|credentials|private (?:information|data|messages|photos)"
    r"|medical (?:records?|files?)|health records?|trade secrets?|intellectual property|databases?"
)
SYSTEM = (
    r"computers?|networks?|systems?|websites?|servers?|databases?|accounts?|e-?mails?|phones?"
    r"|smartphones?|wi-?fi|routers?"
    r"|webcams?|cameras?|cars?|atms?|bank|facebook|instagram|government|grid|plant|software|devices?|voting machines?"
)
