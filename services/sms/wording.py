"""What the service itself writes to people: confirmations, help, verification codes; in the languages that it knows.

Owns the sentences. Each is of the GSM-7 alphabet and fits one segment with a sender's name of 20 characters.
"""

from typing import Final

_SENTENCES: Final = {
    "en": {
        "stop": "{name}: you will get no more texts from us. Reply START to get them again.",
        "start": "{name}: you will get our texts again. Reply STOP to end them, HELP for help.",
        "help": "{name}: text your question to this number and the assistant answers. Reply STOP to get no more texts.",
        "code": "{name}: your code is {code}. Tell it to nobody.",
    },
    "de": {
        "stop": "{name}: Sie erhalten keine SMS mehr von uns. Mit START bekommen Sie sie wieder.",
        "start": "{name}: Sie erhalten wieder SMS von uns. STOP beendet sie, HILFE hilft.",
        "help": "{name}: Schreiben Sie Ihre Frage an diese Nummer, der Assistent antwortet. STOP beendet die SMS.",
        "code": "{name}: Ihr Code ist {code}. Geben Sie ihn niemandem.",
    },
    "es": {
        "stop": "{name}: no le enviaremos mas SMS. Responda START para recibirlos de nuevo.",
        "start": "{name}: vuelve a recibir nuestros SMS. STOP los termina, AYUDA da ayuda.",
        "help": "{name}: escriba su pregunta a este numero y el asistente responde. STOP termina los SMS.",
        "code": "{name}: su codigo es {code}. No lo diga a nadie.",
    },
    "fr": {
        "stop": "{name}: vous ne recevrez plus de SMS de notre part. Répondez START pour en recevoir de nouveau.",
        "start": "{name}: vous recevez de nouveau nos SMS. STOP les termine, AIDE pour de l'aide.",
        "help": "{name}: écrivez votre question à ce numéro, l'assistant répond. STOP termine les SMS.",
        "code": "{name}: votre code est {code}. Ne le donnez à personne.",
    },
    "it": {
        "stop": "{name}: non riceverà altri SMS da noi. Risponda START per riceverli di nuovo.",
        "start": "{name}: riceve di nuovo i nostri SMS. STOP li termina, AIUTO per aiuto.",
        "help": "{name}: scriva la sua domanda a questo numero e l'assistente risponde. STOP termina gli SMS.",
        "code": "{name}: il suo codice è {code}. Non lo dica a nessuno.",
    },
    "pt": {
        "stop": "{name}: nao vai receber mais SMS nossos. Responda START para os receber de novo.",
        "start": "{name}: recebe de novo os nossos SMS. STOP termina, AJUDA para ajuda.",
        "help": "{name}: escreva a sua pergunta para este numero e o assistente responde. STOP termina os SMS.",
        "code": "{name}: o seu codigo é {code}. Nao o diga a ninguem.",
    },
}
LANGUAGES: Final = tuple(_SENTENCES)


def confirmation(keyword: str, *, language: str, name: str) -> str:
    """The answer to a keyword: `stop`, `start` or `help`."""
    return _sentence(keyword, language).format(name=name)


def code_text(code: str, *, language: str, name: str) -> str:
    """The text that brings a verification code. `language` is a BCP 47 tag, or empty."""
    return _sentence("code", language).format(name=name, code=code)


def _sentence(kind: str, language: str) -> str:
    primary = language.partition("-")[0].lower()
    return _SENTENCES.get(primary, _SENTENCES["en"])[kind]
