# SPDX-License-Identifier: Apache-2.0
"""Requests for deceit, theft, intrusion and cruelty, as one can read them. Nothing here says how anything is done."""

from __future__ import annotations

from moored.service.screening.harm_words import MAKE, SECRET, SOMEBODY, SYSTEM, asked, near

TO_THINGS: dict[str, tuple[str, ...]] = {
    "cybercrime": (
        near(
            r"hack(?:s|ing|ed)?(?: into)?|break(?:ing)? into|crack(?:s|ing)?|brute[- ]force|infiltrat\w+"
            r"|hijack\w*|gain(?:ing)? (?:unauthori[sz]ed )?access|compromis\w+|bypass\w*|disabl\w+|take down"
            r"|takes down|exploit\w*|penetrat\w+",
            SYSTEM
            + "|"
            + SECRET
            + r"|antivirus|anti-virus|firewalls?|security (?:measures|systems?)|encryption|drm|paywalls?|alarms?",
            6,
        ),
        r"\b(?:malware|ransomware|spyware|keyloggers?|trojans?|botnets?|rootkits?|phishing|phish|ddos"
        r"|dos attack|denial[- ]of[- ]service|computer (?:virus|worm)|spam bots?|send\w* spam"
        r"|sql injection attack)\b",
        near(MAKE + "|spread\\w*|infect\\w*|launch\\w*|releas\\w+", r"virus(?:es)?|worm|exploit|backdoor"),
        near(r"evad\w+|avoid\w*|disabl\w+|bypass\w*", r"anti-?virus|detection by|firewall|surveillance"),
        r"\b(?:how to|can) hack(?:ing)?\b|\bdark ?web (?:market|vendor)",
        near("illegally|pirat(?:e|ed|ing)|torrent", r"copyrighted|movies?|music|software|games?"),
        near("destroy|brick|fry|damage", r"someone'?s? (?:pc|computer|printer|phone|laptop|car|property|house)", 2),
    ),
    "fraud": (
        r"\b(?:commit(?:ting)?|get away with|run(?:ning)?|pull(?:ing)? off|perform|conduct\w*|carry out"
        r"|engag\w+ in|successfully)\b (?:\w+ ){0,3}?(?:fraud|scams?|cons?|theft|forgery|embezzlement"
        r"|insider trading|perjury|identity theft|crimes?|ponzi|robber\w+|burglar\w+|arson|blackmail|bribery"
        r"|heist|plagiarism)\b",
        r"\b(?:insider trading|identity theft|ponzi schemes?|pyramid schemes?|tax (?:fraud|evasion)|(?:mail"
        r"|wire|credit card|insurance|bank|check) fraud|money laundering|financial crimes?)\b",
        near(
            r"evad\w+|dodg\w+|avoid(?:ing)? paying|hid(?:e|ing) (?:\w+ )?(?:income|money|assets)|cheat\w* (?:on|the)",
            r"tax(?:es| office| man)?|irs",
            5,
        ),
        r"\bhid(?:e|ing) (?:\w+ ){0,2}(?:income|money|cash|assets)\b|\b(?:evade|dodge"
        r"|avoid paying) (?:\w+ )?tax(?:es)?\b",
        near(
            r"scam\w*|swindl\w*|defraud\w*|con|trick\w*|deceiv\w+|mislead\w*|dup(?:e|ing)|cheat\w*",
            SOMEBODY
            + r"|out of (?:their )?money|consumers?|investors?|voters?|seniors|viewers|readers|insurance|donors?"
            r"|casino|exams?|tests?|partner|quiz",
            5,
        ),
        near(
            MAKE + r"|us(?:e|ing)|get|sell|run|set up|forg\w+|fak\w+|print",
            r"(?:fake|false|forged|counterfeit|bogus|phony|phoney|stolen) (?:\w+ ){0,2}?(?:ids?|identit(?:y|ies)"
            r"|passports?|documents?|money|bills|currency|checks?|cheques?|website|charit(?:y|ies)|reviews?"
            r"|invoices?|degrees?|licen[cs]es?|certificates?|products?|goods|notes?|profiles?|bank|coins?"
            r"|vouchers?|tickets?|prescriptions?|stories|persona|signatures?)",
            5,
        ),
        r"\bcounterfeit\w*\b|\bforg(?:e|ing) (?:\w+ ){0,3}(?:signatures?|documents?|checks?|cheques?|money"
        r"|certificates?|passports?|will)\b",
        near("skim|clone|empty|drain", r"cards?|bank accounts?|savings", 4),
        near(
            "manipulat\\w+",
            r"financial (?:data|markets?)|stock (?:prices?|market)|elections?|votes?|markets?|evidence|prices"
            r"|records|results",
            4,
        ),
        r"\bsell (?:\w+ ){0,5}(?:that belongs|not mine|i do not own|stolen)\b",
        r"\bprice[- ]?(?:fix|goug)\w*\b|\bbrib(?:e|es|ing)\b",
    ),
    "theft": (
        near(r"shoplift\w*|pickpocket\w*|burgl\w+|loot\w*|embezzl\w+|hotwire|siphon\w*", r"\w+", 0),
        near(
            r"steal(?:s|ing)?|snatch\w*",
            SOMEBODY
            + "|"
            + SECRET
            + r"|cars?|bikes?|bicycles?|money|cash|jewel\w+|purses?|wallets?|phones?|packages?|banks?|stores?"
            r"|shops?|graves?|tombs?|trains?|houses?|homes?|museums?|paintings?|art|mail|electricity|gas|food"
            r"|from|information|data|secrets|cards?|goods|merchandise|clothes|perfume|books?|laptops?|vehicles?"
            r"|signs?|candy|beer|wine|packages?|land|inheritance|identity",
            5,
        ),
        near(
            r"pick(?:ing)?|forc(?:e|ing)|open(?:ing)?|bypass\w*",
            r"locks?|(?:lock|door|safe|car) (?:of|without|that)|someone'?s (?:house|car|lock|safe)",
            4,
        ),
        near("take|taking", r"(?:money|cash|jewel\w+|wallet|purse)\b.{0,40}\bwithout", 4),
        near(
            r"break(?:ing)? in(?:to)?|breaking and entering",
            r"houses?|homes?|cars?|apartments?|shops?|stores?|buildings?|museums?|school",
            4,
        ),
        r"\b(?:sneak|walk|get) (?:\w+ ){0,4}out of (?:a |the )?(?:shop|store|restaurant) without paying\b"
        r"|\bwithout paying\b",
    ),
    "privacy": (
        near(
            r"track\w*|spy(?:ing)?(?: on)?|monitor\w*|eavesdrop\w*|listen(?:ing)? in|tap|bug|intercept\w*"
            r"|read\w*|record\w*|watch\w*|follow|photograph\w*|film\w*",
            r"(?:without (?:their|her|his|the|a|consent|them|being|permission|anyone|knowledge)|in secret"
            r"|secretly|messages|phone|calls|e-?mails?|private|diary|user activity|unsuspecting|location of|gps)",
            7,
        ),
        near(
            r"find|look(?:ing)? up|locate|reveal\w*|post|publish|leak|share|get|obtain|disclose|collect\w*"
            r"|harvest\w*|gather\w*|sell\w*|give me",
            r"(?:(?:home |private |current )?address(?:es)?(?: of)?|phone number|social security numbers?"
            r"|number plate|licen[cs]e plate|where \w+ (?:\w+ )?lives|where (?:a|an|the|my|his|her) \w+ lives"
            r"|medical (?:records?|file)|health records?|patient'?s? file|personal (?:information|data|details)"
            r"|sensitive (?:\w+ )?(?:information|data)|whereabouts|ssn|passwords?|private (?:photos|information"
            r"|data))",
            6,
        ),
        near(
            r"put|plac(?:e|ing)|install\w*|hid(?:e|ing)|plant\w*|set up",
            r"(?:hidden |spy |secret )?(?:cameras?|microphones?|gps trackers?|trackers?|spyware|bugs?|webcam)",
            4,
        ),
        near(
            r"guess\w*|get|crack\w*|steal\w*|find",
            r"(?:password|pin|passcode)s?\b(?:[ ,]+[\w-]+){0,3}?[ ,]+(?:of|to|for|ex|her|his|someone|their)?",
            4,
        ),
        near(
            r"access\w*|open\w*|log(?:ging)? in(?:to)?|get(?:ting)? in(?:to)?",
            r"(?:someone(?: else)?'?s?|her|his|their|my (?:ex|wife|husband|boss|girlfriend"
            r"|boyfriend)\w*'?s?) (?:\w+ )?(?:account|phone|e-?mails?|messages|mail|computer|instagram|facebook)",
            2,
        ),
        r"\binvade (?:\w+ )?privacy\b|\bfacial recognition\b(?=.*without)",
    ),
    "disinformation": (
        near(
            r"spread\w*|writ(?:e|ing)|creat\w+|publish\w*|generat\w+|post\w*|start\w*|promot\w+|mak(?:e|ing)"
            r"|invent\w*|develop\w*|fabricat\w+|provid\w+",
            r"(?:fake news|misinformation|disinformation|propaganda|hoax(?:es)?|conspiracy"
            r"|false (?:\w+ )?(?:information|rumou?rs?|claims?|news|story|stories|evacuation|alarm)|rumou?rs?"
            r"|fake (?:quotes?|news|stud(?:y|ies)|article|stories|protest|evidence|event|video)|deepfakes?"
            r"|lies about)",
            6,
        ),
        near(
            r"convinc\w+|persuad\w+|make|trick\w*|claims?|says?|argu\w+|pass off|proves?|denies|deny",
            r"(?:vaccines? (?:contain\w*|cause\w*|are|kill\w*|do)|seat ?belts|bleach|earth is flat|flat earth"
            r"|holocaust|climate (?:change|hoax)|5g|covid|drunk driving|smoking (?:is|has|cures)|fevers?"
            r"|no doctor|cures? (?:cancer|all|everything|a )|is legal|is allowed|is safe to drink|moon landing"
            r"|microchips?|trackers)",
            6,
        ),
        near(
            r"rig(?:ging)?|steal\w*|buy(?:ing)?|suppress\w*|stop\w*|interfer\w+|tamper\w*|hack\w*|influenc\w+"
            r"|prevent\w*|discourage|manipulat\w+",
            r"(?:votes?|voting|voters?|elections?|ballots?|count|polls?|polling|census)",
            6,
        ),
        near(
            r"silenc\w+|crush\w*|intimidat\w+|jail|suppress\w*|censor\w*|flood",
            r"(?:reporters?|journalists?|protest\w*|opposition|dissent\w*|critics?|press|activists?|inbox"
            r"|whistleblowers?)",
            4,
        ),
        r"\bcauses? (?:\w+ )?(?:panic|chaos)\b|\bincit\w+ (?:chaos|panic|violence|unrest)\b"
        r"|\bfake (?:\w+ )?(?:quotes|study)\b",
    ),
    "deceit": (
        near(
            r"cheat\w*|plagiari[sz]\w+",
            r"(?:exam|exams|test|tests|thesis|essay|homework|quiz|class|wife|husband|partner|spouse|taxes|in|on"
            r"|school|college)",
            6,
        ),
        near(
            r"fak(?:e|ing)|forg(?:e|ing)",
            r"(?:sick note|doctor'?s note|illness|alibi|injur(?:y|ies)|résumé|resume|references?|death|signature"
            r"|five-star|reviews?|data|results|disabilit\w+|accident|study|emergency|credentials|experience)",
            5,
        ),
        near(
            r"li(?:e|ing)|break(?:ing)?|tak(?:e|ing) credit|blam\w+",
            r"(?:about (?:an|my|the) affair|to (?:a|my|the|your) (?:\w+ )?(?:wife|husband|boss|partner|police"
            r"|judge|court|parents|doctor|customer)|for (?:a|my|the|someone'?s?) (?:\w+ )?(?:colleague"
            r"|co-?worker|coworker)'?s? (?:work|idea)|promise and blame|someone else|under oath"
            r"|colleague'?s? work)",
            5,
        ),
        r"\bmade-up excuse\b|\bbreak a promise\b|\bwithout being noticed\b|\bmisleads? (?:consumers"
        r"|customers|people)\b|\bfalse (?:review|information about a product)\b",
    ),
    "animals": (
        near(
            r"kill\w*|poison\w*|beat\w*|abus\w+|tortur\w+|drown\w*|starv\w+|hurt\w*|kick\w*|burn\w*|abandon\w*"
            r"|fight\w*|chain\w*|keep|cag(?:e|ing)|leave|lock\w*|smuggl\w+|poach\w*|trap\w*|catch\w*|shoot\w*"
            r"|hunt\w*|trad(?:e|ing)|stone|throw stones at|skin|neglect\w*|mistreat\w*|mak(?:e|ing)|injur\w+"
            r"|cruelty to|mutilat\w+|film",
            r"(?:dogs?|pupp(?:y|ies)|cats?|kittens?|horses?|cows?|birds?|songbirds?|parrots?|monkeys?|bears?"
            r"|elephants?|ivory|rhinos?|tigers?|pigs?|rabbits?|hamsters?|pets?|animals?|wildlife|(?:endangered"
            r"|protected|rare) \w+|bitches|swans?|pigeons?|roosters?|circus)\b.{0,60}?(?:\b(?:next door|beat\w*"
            r"|flat|hot car|pain\w*|market|border|injured|illegally|for (?:fun|bets|clicks|money)|cruel\w*"
            r"|fight\w*|mill|in the (?:woods|park)|without|suffer\w*|laugh|at home|at night|to death|chained"
            r"|secret\w*)\b)",
            4,
        ),
        r"\b(?:cock|dog) ?fight(?:s|ing)?\b|\banimal cruelty\b|\bpuppy mills?\b|\bpoach(?:ing|ers?)\b"
        r"|\bby beating (?:it|them|him|her)\b",
        near(
            r"poison\w*|drown\w*|tortur\w+|mutilat\w+|kick\w*|strangl\w+|beat\w*",
            r"(?:dogs?|pupp(?:y|ies)|cats?|kittens?|horses?|pets?|animals?|birds?|neighbou?r'?s? (?:dog|cat)"
            r"|hamsters?|rabbits?)",
            4,
        ),
    ),
    "a harmful act": (
        asked(
            r"murder\w*|poison(?:ing|s)?|strangl\w+|suffocat\w+|stab(?:bing)?|tortur\w+|kidnap\w*|abduct\w*|ambush\w*"
            r"|assault\w*|assassinat\w+|behead\w*|maim\w*|mutilat\w+|lynch\w*|massacres?|drown(?:ing)?(?! out)"
            r"|starv(?:e|ing)|bludgeon\w*"
            r"|burn(?:ing)? down|torment\w*|terrori[sz]e|vandali[sz]\w+|arson|riots?|molest\w*|rape|grop(?:e"
            r"|ing)|hostages?"
            r"|cruel\w*|brutal\w*|overdos\w+|suicid\w+|self-harm\w*|genocide"
        ),
        asked(
            r"rob(?:bing)? (?:an?|the|my|his|her|someone)|shoplift\w*|burgl\w+|loot\w*|pickpocket\w*|embezzl\w+"
            r"|launder\w* (?:money|cash)|counterfeit\w*"
            r"|swindl\w+|scams?|defraud\w*|brib\w+|blackmail\w*|extort\w*|smuggl\w+|human traffick\w+|hijack\w*|hotwire"
            r"|plagiari[sz]\w+|fak(?:e|ing) (?:an?|my|his|her|your|their|the)|impersonat\w+|pos(?:e|ing) as"
            r"|pretend(?:ing)? to be an?"
            r"|illegal(?:ly)?|illicit|unlawful(?:ly)?|stolen|black market|dark ?web|cartels?|mafia|the mob"
            r"|criminals?|smugglers?"
        ),
        asked(
            r"spy(?:ing)? on|stalk(?:ing)?|eavesdrop\w*|snoop\w*|doxx?(?:ing)?|wiretap\w*|hack(?:ing)?|phish\w*"
            r"|malware|ransomware"
            r"|secretly|in secret|behind (?:his|her|their|my \w+'s?) backs?|without (?:his|her|their|a|any"
            r"|anyone'?s?|the) (?:\w+ )?(?:consent|permission|knowledge|knowing|licen[cs]e|prescription|noticing"
            r"|paying|permit)"
            r"|undetected|unnoticed|untraceabl[ey]|get(?:ting)? caught|incriminating|unsuspecting"
        ),
        asked(
            r"bull(?:y|ies|ying)|harass\w*|humiliat\w+|degrad(?:e|ing)|ridicul(?:e|ing)|slander\w*|defam\w+"
            r"|slurs?|racist|sexist"
            r"|hateful|homophobic|xenophobic|bigot\w*|nazis?|hitler|jihad\w*|extremis\w+|propaganda"
            r"|conspiracy theor\w+|hoax\w*"
            r"|false rumou?rs?|fake (?:news|reviews?|quotes?|ids?|stor(?:y|ies)|evidence|passports?|documents?)"
            r"|rig(?:ging)? (?:an?|the)"
            r"|intimidat\w+|porn\w*|nudes?|naked|lewd|upskirt\w*|deepfakes?|underage|incest\w*|bestiality"
            r"|insult(?:s|ing)? (?:an?|the|my|his|her|their|people|someone)|mocks? (?:an?|the|my|people|someone|those)"
        ),
        near(
            r"refus\w+|den(?:y|ying)|reject\w*|exclud\w+|fir(?:e|ing)|evict\w*|charg(?:e|ing)|pay(?:ing)?"
            r"|hir(?:e|ing)|turn(?:ing)? away|ban(?:ning)?|segregat\w+",
            r"(?:because|based on|due to|over) (?:[\w']+ ){0,4}?(?:race|religion|gender|sex|age|accent"
            r"|disabilit\w+|pregnan\w+|old|foreign\w*|gay|skin|hijab|headscar\w+|ethnic\w*|nationality|black"
            r"|muslim|jewish|woman|women|name)",
            8,
        ),
        near(
            r"hit|slap|spank|smack|shake|lock|beat|neglect|scare|shout at|leave",
            r"(?:my |your |a |the |his |her )?(?:child(?:ren)?|kids?|baby|bab(?:y|ies)|toddlers?|son|daughter"
            r"|infants?|pupils?|students?)",
            1,
        ),
    ),
    "evasion": (
        r"\b(?:without (?:getting|being|ever being) (?:caught|noticed|detected|arrested|found out|traced"
        r"|seen)|get(?:ting)? away with (?:it|murder|a crime|this|breaking)|cover (?:up )?(?:my|your|their"
        r"|the|our) tracks"
        r"|(?:evad\w+|avoid\w*|escap\w+) (?:\w+ )?(?:detection|capture|law enforcement|the police|police"
        r"|arrest|the law|prosecution|punishment)|leav(?:e|ing) no (?:trace|evidence|fingerprints)"
        r"|without (?:anyone|anybody|them|her|him|my \w+|the \w+) (?:knowing|noticing|seeing|finding out)"
        r"|without (?:her|his|their) (?:knowledge|consent|permission|noticing))\b",
        r"\b(?:develop an illegal)\b|\b(?:illegal|criminal|unlawful) (?:activit\w+|acts?|business|operation"
        r"|enterprise|ring)\b",
    ),
}
"""Patterns by category."""
