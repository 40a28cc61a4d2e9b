"""The names of properties: one for each, whatever a model calls it.

Owns the synonyms, and which properties a subject has one of at a time. A property that is not named here keeps its own name
and may have many values.
"""

from typing import Final

from services.memory.extraction.vocabulary import USERS, folded

_SYNONYMS: Final = {
    "home city": (
        "city, town, location, residence, home, home town now, place of residence, lives in, living place, current city,"
        " current location, where lives, living location, home location, city of residence, lives, based in, home base"
    ),
    "name": "full name, first name, given name, username, called, preferred name, user name",
    "employer": "company, workplace, works at, works for, work place, place of work, current employer, organization",
    "occupation": "job, profession, job title, role, works as, career, work, position, current job",
    "age": "years old, current age",
    "birthday": "birth date, birthdate, date of birth, born, dob",
    "partner": "wife, husband, spouse, girlfriend, boyfriend, fiance, fiancee, significant other, married to, relationship",
    "marital status": "relationship status, civil status",
    "email": "email address, mail, e-mail, e-mail address",
    "phone number": "phone, telephone, mobile, mobile number, cell, telephone number",
    "time zone": "timezone",
    "native language": "mother tongue, first language",
    "answer language": "language of answers, preferred language, reply language, response language, language preference",
    "likes": "like, loves, love, enjoys, interests, interest, preference, preferences, hobby, hobbies, fond of, liked",
    "dislikes": "dislike, hates, hate, aversion, disliked",
    "allergy": "allergies, allergic to, allergen, food allergy",
    "pet": "pets, dog, cat, animal, animals",
    "diet": "dietary preference, eating habits, food preference, dietary restriction",
    "height": "body height",
    "hometown": "home town, birthplace, place of birth, born in, from, origin, native city",
}
_SINGLE: Final = frozenset(
    (
        *("home city", "name", "employer", "age", "birthday", "marital status", "time zone", "native language"),
        *("answer language", "height", "hometown", "nationality", "diet", "phone number", "email"),
    )
)
_BY_SYNONYM: Final = {
    folded(synonym.strip()): attribute
    for attribute, synonyms in _SYNONYMS.items()
    for synonym in (attribute, *synonyms.split(","))
}
_PREFIXES: Final = ("the ", "user ", "users ", "my ", "their ", "his ", "her ")
_FAVOURITE: Final = "favourite "
DEFAULT_SUBJECT: Final = "user"


def normal_attribute(told: str) -> str:
    """The name under which a property is kept."""
    plain = " ".join(folded(told).replace("_", " ").replace("-", " ").split())
    for prefix in _PREFIXES:
        plain = plain.removeprefix(prefix)
    plain = plain.replace("favorite", "favourite")
    return _BY_SYNONYM.get(plain, plain)


def normal_subject(told: str) -> str:
    """The name under which a subject is kept: `user`, or as it was told."""
    plain = " ".join(told.split())
    return DEFAULT_SUBJECT if not plain or folded(plain).removeprefix("the ") in USERS else plain


def is_single(attribute: str) -> bool:
    """Whether a subject has one value of a property at a time."""
    return attribute in _SINGLE or attribute.startswith(_FAVOURITE)


def words_of(attribute: str) -> frozenset[str]:
    """The words by which somebody may speak of a property."""
    told = f"{attribute} {_SYNONYMS.get(attribute, '')}".replace(",", " ")
    return frozenset(folded(told).split())
