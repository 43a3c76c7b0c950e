# SPDX-License-Identifier: Apache-2.0
"""Which requests ask for harm: patterns of an act and its object, by category, as one can read them.

Nothing here says how anything is done. A rule is a pattern over normalised text (lower case, straight quotes, single
spaces). Repetitions are bounded and so is the text that is read, so no input is slow.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

VERSION = "1"
"""Raised when what is found can change."""

_LONGEST = 2000
_MARKS = str.maketrans(dict.fromkeys("’‘ʼ´`", "'") | dict.fromkeys("“”«»", '"') | dict.fromkeys("–—‑", "-"))


def _near(acts: str, objects: str, words: int = 5) -> str:
    """An act with its object at most so many words behind it."""
    return rf"\b(?:{acts})\b(?:[ ,'\"-]+[\w-]+){{0,{words}}}?[ ,'\"-]+(?:{objects})\b"


_MAKE = (
    r"mak(?:e|es|ing)|build(?:s|ing)?|creat(?:e|es|ing)|construct(?:s|ing)?|assembl(?:e|es|ing)|produc(?:e|es|ing)"
    r"|manufactur(?:e|es|ing)|design(?:s|ing)?|develop(?:s|ing)?|writ(?:e|es|ing)|print(?:s|ing)?|cod(?:e|es|ing)"
    r"|generat(?:e|es|ing)|compos(?:e|es|ing)|draft(?:s|ing)?"
)
_SPEAK = (
    r"writ(?:e|es|ing)|compos(?:e|es|ing)|draft(?:s|ing)?|creat(?:e|es|ing)|generat(?:e|es|ing)|tell|spread(?:s|ing)?"
    r"|publish(?:es|ing)?|post(?:s|ing)?|giv(?:e|es|ing)|produc(?:e|es|ing)|say|sing|invent|design|develop|make"
)
_GET = (
    r"buy(?:s|ing)?|sell(?:s|ing)?|get(?:s|ting)?|obtain(?:s|ing)?|acquir(?:e|es|ing)|smuggl(?:e|es|ing)"
    r"|deal(?:s|ing)?|traffic(?:s|king)?|import|order|find|grow(?:s|ing)?|cook(?:s|ing)?|us(?:e|es|ing)|tak(?:e|es|ing)"
)
_GIVEN = (
    r"someone|somebody|people|a person|another person|person|man|woman|girl|boy|child|children|kids?|wife|husband"
    r"|spouse|boyfriend|girlfriend|ex|partner|neighbou?r|boss|colleague|co-?worker|teacher|student|pupil|classmate"
    r"|enem(?:y|ies)|rival|victims?|witness|stranger|friend|mother|father|mom|dad|parents?|brother|sister|baby|toddler"
    r"|daughter|son|teen(?:ager)?s?|minors?|elderly|patient|guests?|customers?|employees?|officer|police(?:man)?|cop"
    r"|driver|prisoner|politician|president|mayor|minister|senator|journalist|reporter|celebrity|businessman|homeless"
)
_GROUP = (
    r"jew(?:s|ish)?|muslims?|islam|christians?|hindus?|blacks?|black (?:people|men|women)|white (?:people|men|women)"
    r"|africans?|asians?|chinese|mexicans?|arabs?|russians?|indians?|latin[oax]s?|hispanics?|gypsies|roma|refugees?"
    r"|immigrants?|migrants?|foreigners?|gays?|lesbians?|homosexuals?|lgbt\w*|trans(?:gender)?|queers?|women|men|girls"
    r"|disabled|wheelchairs?|autistic|fat people|poor people|minorit(?:y|ies)|minority groups?|races?|religions?"
    r"|ethnic\w*|protected group"
)
_WEAPON = (
    r"(?:pipe |dirty |nail |car |letter |time |molotov )?bombs?|explosives?|grenades?|molotov\w*|detonators?|ieds?"
    r"|land ?mines?|firecrackers?|guns?|pistols?|rifles?|firearms?|silencers?|ammunition|ghost guns?|weapons?|ak-?47s?"
    r"|nerve (?:gas|agents?)|poison gas|sarin|ricin|anthrax|chemical weapons?|bio(?:logical)? ?weapons?|napalm|thermite"
)
_DRUG = (
    r"meth(?:amphetamine)?s?|cocaine|crack|heroin|fentanyl|lsd|mdma|ecstasy|ketamine|ghb|opioids?|opium|cannabis|weed"
    r"|marijuana|roofies?|date[- ]rape drugs?|(?:illegal|illicit|hard|banned|party) (?:drugs?|substances?)|steroids"
    r"|drug (?:lab|ring|deal\w*|cartel)|narcotics"
)
_SECRET = (
    r"passwords?|credit cards?|card (?:numbers?|data|details)|bank accounts?|accounts?|identit(?:y|ies)"
    r"|personal (?:information|data|details)|sensitive (?:\w+ )?(?:information|data)|confidential (?:\w+ )?(?:information"
    r"|data|files?)|user data|login (?:credentials|details)|credentials|private (?:information|data|messages|photos)"
    r"|medical (?:records?|files?)|health records?|trade secrets?|intellectual property|databases?"
)
_SYSTEM = (
    r"computers?|networks?|systems?|websites?|servers?|databases?|accounts?|e-?mails?|phones?|smartphones?|wi-?fi|routers?"
    r"|webcams?|cameras?|cars?|atms?|bank|facebook|instagram|government|grid|plant|software|devices?|voting machines?"
)

_RULES: dict[str, tuple[str, ...]] = {
    "weapons": (
        _near(_MAKE + "|modify|turn|convert|3d[- ]print", _WEAPON),
        _near(_GET, _WEAPON + r") (?:without|illegally|on the (?:dark|black)|no (?:background|licen[cs]e|permit)", 3),
        _near("detonat(?:e|ing)|plant(?:s|ing)?|hid(?:e|ing)|set off|smuggl(?:e|ing)", _WEAPON),
        _near("best uses? for|illegally (?:own|carry|buy)", _WEAPON),
    ),
    "drugs": (
        _near(_MAKE + "|" + _GET + "|synthesi[sz]e|deal in|push|hide|inject|snort", _DRUG),
        _near("fak(?:e|ing)|forg(?:e|ing)", "prescriptions?"),
        _near("slip|put|spike|drug", r"drinks?|drugs? in"),
        _near("promot(?:e|es|ing)|encourag(?:e|es|ing)|sells?", r"(?:illegal )?drugs?|drug (?:use|abuse)|smoking|binge drinking"),
        _near(r"sell(?:s|ing)?|deal\w*|crush\w*|snort\w*|steal\w*", "pills"),
        r"\bget (?:high|past a drug test)\b|\bdrug (?:dealer|mule|cartel)s?\b",
    ),
    "violence": (
        _near(
            r"kill(?:s|ing)?|murder(?:s|ing)?|stab(?:s|bing)?|strangl(?:e|es|ing)|suffocat\w+|smother\w*|chok(?:e|ing)"
            r"|poison(?:s|ing)?|assassinat\w+|execut(?:e|ing)|shoot(?:s|ing)?|tortur(?:e|es|ing)|kidnap(?:s|ping)?"
            r"|abduct\w*|beat(?:ing)?(?: up)?|assault\w*|attack(?:s|ing)?|hurt(?:ing)?|injur(?:e|ing)|maim\w*|ambush\w*"
            r"|drown(?:ing)?|lynch\w*|behead\w*|mug|rob|threaten(?:s|ing)?|punch\w*|slap\w*|burn(?:ing)?|hit(?:ting)?"
            r"|harm(?:ing)?|run over|get rid of|hire a hitman",
            _GIVEN,
            4,
        ),
        r"\b(?:commit|committing|plan|planning|get away with|cover up|perfect) (?:\w+ ){0,2}?(?:murders?|killings?|assault"
        r"|massacres?|arson|manslaughter|homicides?|violence|mass shootings?|school shootings?|genocide|kidnappings?)\b",
        _near(r"hid(?:e|ing)|dispos(?:e|ing) of|get(?:ting)? rid of|dissolv\w+|bury", r"(?:dead )?bod(?:y|ies)|corpses?", 3),
        _near("threatening|threats?", r"letters?|messages?|notes?|to (?:kill|shoot|harm|hurt)", 3),
        _near("clean up|help|hide|shelter", r"crime scenes?|murderers?|killers?|fugitives?"),
        r"\bmake it look like an? (?:accident|suicide)\b|\bhit ?m[ae]n\b|\bcontract killing\b",
        _near("throw(?:ing)?|splash", "acid"),
        _near("glorif(?:y|ies)|prais(?:e|es|ing)|celebrat\\w+|incit\\w+|promot\\w+|encourag\\w+|calls? (?:for|to)|calling for", r"violen\w+|riots?|massacres?|bloodshed|a race war|chaos|crushing|lynch\w*|murders?", 5),
        _near("start|incite|initiate|cause", r"brawl|riots?|race war|fights?|stampede", 3),
        _near("set", r"fire to|on fire", 5),
        _near("extract|cut off|break|rip out|gouge", r"(?:tongue|fingers?|legs?|arms?|bones?|eyes?|kneecaps?)", 5),
        _near("sabotag\\w+|derail\\w*|disconnect\\w*|cut|tamper with", r"brakes?|trains?|planes?|roller coasters?|transportation|bridges?|power|pipelines?|infrastructure|car|aircraft", 5),
    ),
    "terrorism": (
        r"\bterroris[mt]s?\b(?! ?(?:attacks? (?:of|in) (?:19|20)\d\d|financing laws?))",
        _near(r"join|recruit\w*|support|fund|rais\w+|start|lead", r"(?:extremist|jihad\w*|militia|terror|isis|al-?qaeda|neo-?nazi|gangs?|cartel|radicali[sz]\w+)", 6),
        _near(r"take|hold", "hostages?", 3),
        _near(r"hijack\w*|derail\w*|blow(?:ing)? up|bomb(?:ing)?", r"hostages?|planes?|trains?|airports?|stations?|bus(?:es)?|ships?|embass\w+|building|school|church|mosque|synagogue", 4),
        r"\bradicali[sz](?:e|ing|ation)\b|\bmaximum casualties\b|\bmass casualt\w+\b|\bprotection money\b|\bextort\w*\b|\bblackmail\w*\b",
        _near(r"traffic\w*|smuggl\w+", r"people|humans?|migrants?|organs?|women|children|girls|endangered|species|animals?|parrots?|ivory|weapons?|goods|contraband|cigarettes", 5),
        _near(r"launder\w*", r"money|cash|profits|drug"),
    ),
    "self-harm": (
        r"\b(?:commit(?:ting)?|committed) suicide\b|\bsuicide (?:method|note|pact)s?\b|\bself[- ]harm(?:ing)?\b",
        r"\b(?:kill|cut|cutting|hurt|hang|starve|harm|drown|shoot|poison|injure|burn) (?:myself|yourself|themselves|himself|herself|themself)\b",
        _near(r"end(?:ing)?|tak(?:e|ing)", r"(?:my|your|their|his|her) (?:own )?life", 1),
        r"\b(?:pro[- ]?ana|thinspo)\b|\b(?:anorexi\w+|bulimi\w+|eating disorders?)\b(?=.{0,60}\b(?:healthy|lifestyle|tips|start|become|promot|encourag))",
        _near(r"promot\w+|encourag\w+|glorif\w+|develop\w*|become|hide", r"anorexi\w+|bulimi\w+|eating disorders?|suicid\w+|self-harm\w*|scars", 6),
        _near(r"talk|push|drive|convince|persuade|encourage", r"into (?:jumping|suicide|killing)|to (?:suicide|kill|jump)|suicid\w+", 5),
        r"\bgoodbye note\b|\bdisappear from this world\b|\bwithout pain\b(?=.*\blife\b)|\bstop eating\b|\bpunish my body\b|\bpainless(?:ly)? (?:die|death|suicide)\b",
    ),
    "sexual": (
        _near(r"writ(?:e|ing)|generat\w+|creat\w+|make|send|share|film\w*|post|leak|distribut\w+|sell", r"(?:explicit|erotic|porn\w*|nudes?|nude (?:pictures?|photos?|images?)|intimate (?:video|photo|picture)s?|sex (?:tape|scene|video)s?|lewd|deepfakes?|upskirt\w*|revenge porn)", 6),
        r"\b(?:child|kiddie|underage) (?:porn\w*|sex\w*|nud\w*)\b|\bcsam\b|\bp[ae]edophil\w+\b|\bsex (?:with|to) (?:a |an )?(?:child|minor|kid|student|underage)\w*\b",
        _near(r"pressur\w+|forc(?:e|ing)|coerc\w+|trick\w*|drug\w*|seduc\w+|groom\w*|lure", r"(?:into )?sex|into bed|minors?|child(?:ren)?|teen\w*|underage|undress\w*|nudes", 6),
        r"\b(?:rap(?:e|es|ing)|molest\w*|grop(?:e|es|ing)|sexually (?:assault|abuse|harass)\w*)\b(?! (?:survivors?|victims?|prevention|kit|crisis))",
        _near(r"film|spy|peep|watch|record|hidden camera", r"shower\w*|undress\w*|bathroom|changing room|locker room|naked|bedroom", 6),
        _near(r"get(?:ting)? (?:past|around)|bypass\w*", r"age (?:check|verification|gate)|adult site|parental (?:controls?|filters?)", 4),
        r"\bwatch porn\b|\bfind prostitutes?\b|\bescort services?\b",
    ),
    "children": (
        _near(r"abus\w+|beat\w*|hit\w*|lock\w*|leav(?:e|ing)|starv\w+|punish\w*|frighten\w*|scar(?:e|es|ing)|sham(?:e|ing)|humiliat\w+|exploit\w*|neglect\w*|threaten\w*|smack\w*|spank\w*|sell|manipulat\w+|make|force", r"(?:child(?:ren)?|kids?|toddler|bab(?:y|ies)|boys?|girls?|daughters?|sons?|pupils?|infants?|ten-year-old|orphans?)\b.{0,40}?\b(?:alone|cellar|closet|meals?|hungry|work\w*|obey\w*|dark|night|beat\w*|in front of|school|without (?:food|getting)|lesson|chores|floors?|black market|labou?r|afraid|abuse|car|instead)", 4),
        r"\bchild (?:abuse|labou?r|bride|soldiers?|trafficking|marriage)\b(?=.{0,60}\b(?:get away|set up|hide|organi[sz]e|profit|recruit))",
        _near(r"child(?:ren)?|kids?", r"black market|worth the most"),
    ),
    "cybercrime": (
        _near(r"hack(?:s|ing|ed)?(?: into)?|break(?:ing)? into|crack(?:s|ing)?|brute[- ]force|infiltrat\w+|hijack\w*|gain(?:ing)? (?:unauthori[sz]ed )?access|compromis\w+|bypass\w*|disabl\w+|take down|takes down|exploit\w*|penetrat\w+", _SYSTEM + "|" + _SECRET + r"|antivirus|anti-virus|firewalls?|security (?:measures|systems?)|encryption|drm|paywalls?|alarms?", 6),
        r"\b(?:malware|ransomware|spyware|keyloggers?|trojans?|botnets?|rootkits?|phishing|phish|ddos|dos attack|denial[- ]of[- ]service|computer (?:virus|worm)|spam bots?|send\w* spam|sql injection attack)\b",
        _near(_MAKE + "|spread\\w*|infect\\w*|launch\\w*|releas\\w+", r"virus(?:es)?|worm|exploit|backdoor"),
        _near(r"evad\w+|avoid\w*|disabl\w+|bypass\w*", r"anti-?virus|detection by|firewall|surveillance"),
        r"\b(?:how to|can) hack(?:ing)?\b|\bdark ?web (?:market|vendor)",
        _near("illegally|pirat(?:e|ed|ing)|torrent", r"copyrighted|movies?|music|software|games?"),
        _near("destroy|brick|fry|damage", r"someone'?s? (?:pc|computer|printer|phone|laptop|car|property|house)", 2),
    ),
    "fraud": (
        r"\b(?:commit(?:ting)?|get away with|run(?:ning)?|pull(?:ing)? off|perform|conduct\w*|carry out|engag\w+ in|successfully)\b (?:\w+ ){0,3}?(?:fraud|scams?|cons?|theft|forgery|embezzlement|insider trading|perjury|identity theft|crimes?|ponzi|robber\w+|burglar\w+|arson|blackmail|bribery|heist|plagiarism)\b",
        r"\b(?:insider trading|identity theft|ponzi schemes?|pyramid schemes?|tax (?:fraud|evasion)|(?:mail|wire|credit card|insurance|bank|check) fraud|money laundering|financial crimes?)\b",
        _near(r"evad\w+|dodg\w+|avoid(?:ing)? paying|hid(?:e|ing) (?:\w+ )?(?:income|money|assets)|cheat\w* (?:on|the)", r"tax(?:es| office| man)?|irs", 5),
        r"\bhid(?:e|ing) (?:\w+ ){0,2}(?:income|money|cash|assets)\b|\b(?:evade|dodge|avoid paying) (?:\w+ )?tax(?:es)?\b",
        _near(r"scam\w*|swindl\w*|defraud\w*|con|trick\w*|deceiv\w+|mislead\w*|dup(?:e|ing)|cheat\w*", _GIVEN + r"|out of (?:their )?money|consumers?|investors?|voters?|seniors|viewers|readers|insurance|donors?|casino|exams?|tests?|partner|quiz", 5),
        _near(_MAKE + r"|us(?:e|ing)|get|sell|run|set up|forg\w+|fak\w+|print", r"(?:fake|false|forged|counterfeit|bogus|phony|phoney|stolen) (?:\w+ ){0,2}?(?:ids?|identit(?:y|ies)|passports?|documents?|money|bills|currency|checks?|cheques?|website|charit(?:y|ies)|reviews?|invoices?|degrees?|licen[cs]es?|certificates?|products?|goods|notes?|profiles?|bank|coins?|vouchers?|tickets?|prescriptions?|stories|persona|signatures?)", 5),
        r"\bcounterfeit\w*\b|\bforg(?:e|ing) (?:\w+ ){0,3}(?:signatures?|documents?|checks?|cheques?|money|certificates?|passports?|will)\b",
        _near("skim|clone|empty|drain", r"cards?|bank accounts?|savings", 4),
        _near("manipulat\\w+", r"financial (?:data|markets?)|stock (?:prices?|market)|elections?|votes?|markets?|evidence|prices|records|results", 4),
        r"\bsell (?:\w+ ){0,5}(?:that belongs|not mine|i do not own|stolen)\b",
        r"\bprice[- ]?(?:fix|goug)\w*\b|\bbrib(?:e|es|ing)\b",
    ),
    "theft": (
        _near(r"shoplift\w*|pickpocket\w*|burgl\w+|loot\w*|embezzl\w+|hotwire|siphon\w*", r"\w+", 0),
        _near(r"steal(?:s|ing)?|rob(?:s|bing)?|snatch\w*", _GIVEN + "|" + _SECRET + r"|cars?|bikes?|bicycles?|money|cash|jewel\w+|purses?|wallets?|phones?|packages?|banks?|stores?|shops?|graves?|tombs?|trains?|houses?|homes?|museums?|paintings?|art|mail|electricity|gas|food|from|information|data|secrets|cards?|goods|merchandise|clothes|perfume|books?|laptops?|vehicles?|signs?|candy|beer|wine|packages?|land|inheritance|identity", 5),
        _near(r"pick(?:ing)?|forc(?:e|ing)|open(?:ing)?|bypass\w*", r"locks?|(?:lock|door|safe|car) (?:of|without|that)|someone'?s (?:house|car|lock|safe)", 4),
        _near("take|taking", r"(?:money|cash|jewel\w+|wallet|purse)\b.{0,40}\bwithout", 4),
        _near(r"break(?:ing)? in(?:to)?|breaking and entering", r"houses?|homes?|cars?|apartments?|shops?|stores?|buildings?|museums?|school", 4),
        r"\b(?:sneak|walk|get) (?:\w+ ){0,4}out of (?:a |the )?(?:shop|store|restaurant) without paying\b|\bwithout paying\b",
    ),
    "hate": (
        _near(_SPEAK, r"(?:racist|sexist|homophobic|transphobic|antisemitic|anti-semitic|islamophobic|xenophobic|misogynist\w*|hateful|bigoted|offensive|derogatory|demeaning|hate|nazi|white suprem\w+|slurs?|insults?)", 5),
        r"\bhate[- ](?:speech|slogan|crimes?|group|propaganda)\b|\bwith slurs\b|\bracial slur\b|\bwhite suprem\w+\b|\bethnic cleansing\b|\b(?:promot|incit|spread|encourag)\w* (?:\w+ ){0,3}(?:hatred|hate|racism|discrimination|intolerance|white supremacy)\b",
        _near(r"insult\w*|mock\w*|makes? fun of|humiliat\w+|degrad\w+|dehumani[sz]\w+|ridicul\w+|demoni[sz]\w+|vilif\w+|discriminat\w+|exclud\w+|ban(?:s|ning)?|reject\w*|grad(?:e|ing)|refus\w+|fir(?:e|ing)|keep|exterminat\w+|get rid of|deport|attack\w*|chant against|pay", _GROUP + r"|religion|skin colou?r|pregnan\w+|accent|surnames?|disabilit\w+|stutter\w*|pregnant|colleague with|black families", 7),
        _near("says?|claims?|calls?|argu(?:e|es)|proves?|joke\\w*|reasons?|why", r"(?:" + _GROUP + r")\b(?:[ ,]+[\w-]+){0,4}?[ ,]+(?:lazy|vermin|inferior|stupid|dumb|criminals?|smell\w*|diseases?|deserve|parasites?|dirty|dangerous|worthless|subhuman|evil|annoying|less intelligent|worse|bad|terrible|ruin\w*|animals|terrorists)", 6),
        _near("worst (?:traits|things|stereotypes)|stereotypes?|most hurtful|offensive (?:term|word|joke)s?|jokes?", r"of|about|for|against|at|that", 2) + r"(?:[ ,]+[\w-]+){0,4}?[ ,]+(?:" + _GROUP + r"|person|people)\b",
        _near("only|no", r"(?:white|straight|young|male|christian) (?:men|people|applicants|women|candidates|guests|males) (?:to )?(?:apply|allowed|only)?", 3),
    ),
    "harassment": (
        r"\b(?:cyber ?)?bull(?:y|ies|ying)\b|\bharass(?:es|ing|ment)?\b|\btroll(?:s|ing)?\b (?:\w+ ){0,4}(?:online|survivor|people|someone)|\bstalk(?:ing)?\b (?:an?|my|her|his|someone|people|the|your)\b|\bcyber-?stalk\w*|\bdox(?:x)?(?:ing|ed|es)?\b|\bswat(?:ting)\b|\bgaslight\w*\b|\bdefam\w+\b",
        _near(r"ruin\w*|destroy\w*|wreck\w*|damag\w+|sabotag\w+|end", r"(?:reputation|career|marriage|life|relationship|credibility)", 4),
        _near(r"mak(?:e|ing)|spread\w*|writ(?:e|ing)", r"(?:false|fake|untrue) (?:accusations?|rumou?rs?|claims?|allegations?)", 4),
        _near(r"make", r"(?:feel (?:guilty|worthless|bad|unsafe|ashamed)|jealous|cry)", 6),
        _near(r"manipulat\w+|brainwash\w*|guilt[- ]trip|coerc\w+|intimidat\w+|humiliat\w+|scare|frighten|torment\w*", _GIVEN, 4),
        _near(r"get|take", r"(?:revenge|back at)\b", 4),
        r"\bthreaten\w* (?:a|an|my|his|her|their|the)\b",
    ),
    "privacy": (
        _near(r"track\w*|spy(?:ing)?(?: on)?|monitor\w*|eavesdrop\w*|listen(?:ing)? in|tap|bug|intercept\w*|read\w*|record\w*|watch\w*|follow|photograph\w*|film\w*", r"(?:without (?:their|her|his|the|a|consent|them|being|permission|anyone|knowledge)|in secret|secretly|messages|phone|calls|e-?mails?|private|diary|user activity|unsuspecting|location of|gps)", 7),
        _near(r"find|look(?:ing)? up|locate|reveal\w*|post|publish|leak|share|get|obtain|disclose|collect\w*|harvest\w*|gather\w*|sell\w*|give me", r"(?:(?:home |private |current )?address(?:es)?(?: of)?|phone number|social security numbers?|number plate|licen[cs]e plate|where \w+ (?:\w+ )?lives|where (?:a|an|the|my|his|her) \w+ lives|medical (?:records?|file)|health records?|patient'?s? file|personal (?:information|data|details)|sensitive (?:\w+ )?(?:information|data)|whereabouts|ssn|passwords?|private (?:photos|information|data))", 6),
        _near(r"put|plac(?:e|ing)|install\w*|hid(?:e|ing)|plant\w*|set up", r"(?:hidden |spy |secret )?(?:cameras?|microphones?|gps trackers?|trackers?|spyware|bugs?|webcam)", 4),
        _near(r"guess\w*|get|crack\w*|steal\w*|find", r"(?:password|pin|passcode)s?\b(?:[ ,]+[\w-]+){0,3}?[ ,]+(?:of|to|for|ex|her|his|someone|their)?", 4),
        _near(r"access\w*|open\w*|log(?:ging)? in(?:to)?|get(?:ting)? in(?:to)?", r"(?:someone(?: else)?'?s?|her|his|their|my (?:ex|wife|husband|boss|girlfriend|boyfriend)\w*'?s?) (?:\w+ )?(?:account|phone|e-?mails?|messages|mail|computer|instagram|facebook)", 2),
        r"\binvade (?:\w+ )?privacy\b|\bfacial recognition\b(?=.*without)",
    ),
    "disinformation": (
        _near(r"spread\w*|writ(?:e|ing)|creat\w+|publish\w*|generat\w+|post\w*|start\w*|promot\w+|mak(?:e|ing)|invent\w*|develop\w*|fabricat\w+|provid\w+", r"(?:fake news|misinformation|disinformation|propaganda|hoax(?:es)?|conspiracy|false (?:\w+ )?(?:information|rumou?rs?|claims?|news|story|stories|evacuation|alarm)|rumou?rs?|fake (?:quotes?|news|stud(?:y|ies)|article|stories|protest|evidence|event|video)|deepfakes?|lies about)", 6),
        _near(r"convinc\w+|persuad\w+|make|trick\w*|claims?|says?|argu\w+|pass off|proves?|denies|deny", r"(?:vaccines? (?:contain\w*|cause\w*|are|kill\w*|do)|seat ?belts|bleach|earth is flat|flat earth|holocaust|climate (?:change|hoax)|5g|covid|drunk driving|smoking (?:is|has|cures)|fevers?|no doctor|cures? (?:cancer|all|everything|a )|is legal|is allowed|is safe to drink|moon landing|microchips?|trackers)", 6),
        _near(r"rig(?:ging)?|steal\w*|buy(?:ing)?|suppress\w*|stop\w*|interfer\w+|tamper\w*|hack\w*|influenc\w+|prevent\w*|discourage|manipulat\w+", r"(?:votes?|voting|voters?|elections?|ballots?|count|polls?|polling|census)", 6),
        _near(r"silenc\w+|crush\w*|intimidat\w+|jail|suppress\w*|censor\w*|flood", r"(?:reporters?|journalists?|protest\w*|opposition|dissent\w*|critics?|press|activists?|inbox|whistleblowers?)", 4),
        r"\bcauses? (?:\w+ )?(?:panic|chaos)\b|\bincit\w+ (?:chaos|panic|violence|unrest)\b|\bfake (?:\w+ )?(?:quotes|study)\b",
    ),
    "deceit": (
        _near(r"cheat\w*|plagiari[sz]\w+", r"(?:exam|exams|test|tests|thesis|essay|homework|quiz|class|wife|husband|partner|spouse|taxes|in|on|school|college)", 6),
        _near(r"fak(?:e|ing)|forg(?:e|ing)", r"(?:sick note|doctor'?s note|illness|alibi|injur(?:y|ies)|résumé|resume|references?|death|signature|five-star|reviews?|data|results|disabilit\w+|accident|study|emergency|credentials|experience)", 5),
        _near(r"li(?:e|ing)|break(?:ing)?|tak(?:e|ing) credit|blam\w+", r"(?:about (?:an|my|the) affair|to (?:a|my|the|your) (?:\w+ )?(?:wife|husband|boss|partner|police|judge|court|parents|doctor|customer)|for (?:a|my|the|someone'?s?) (?:\w+ )?(?:colleague|co-?worker|coworker)'?s? (?:work|idea)|promise and blame|someone else|under oath|colleague'?s? work)", 5),
        r"\bmade-up excuse\b|\bbreak a promise\b|\bwithout being noticed\b|\bmisleads? (?:consumers|customers|people)\b|\bfalse (?:review|information about a product)\b",
    ),
    "animals": (
        _near(r"kill\w*|poison\w*|beat\w*|abus\w+|tortur\w+|drown\w*|starv\w+|hurt\w*|kick\w*|burn\w*|abandon\w*|fight\w*|chain\w*|keep|cag(?:e|ing)|leave|lock\w*|smuggl\w+|poach\w*|trap\w*|catch\w*|shoot\w*|hunt\w*|trad(?:e|ing)|stone|throw stones at|skin|neglect\w*|mistreat\w*|mak(?:e|ing)|injur\w+|cruelty to|mutilat\w+|film", r"(?:dogs?|pupp(?:y|ies)|cats?|kittens?|horses?|cows?|birds?|songbirds?|parrots?|monkeys?|bears?|elephants?|ivory|rhinos?|tigers?|pigs?|rabbits?|hamsters?|pets?|animals?|wildlife|(?:endangered|protected|rare) \w+|bitches|swans?|pigeons?|roosters?|circus)\b.{0,60}?(?:\b(?:next door|beat\w*|flat|hot car|pain\w*|market|border|injured|illegally|for (?:fun|bets|clicks|money)|cruel\w*|fight\w*|mill|in the (?:woods|park)|without|suffer\w*|laugh|at home|at night|to death|chained|secret\w*)\b)", 4),
        r"\b(?:cock|dog) ?fight(?:s|ing)?\b|\banimal cruelty\b|\bpuppy mills?\b|\bpoach(?:ing|ers?)\b|\bby beating (?:it|them|him|her)\b",
        _near(r"poison\w*|drown\w*|tortur\w+|mutilat\w+|kick\w*|strangl\w+|beat\w*", r"(?:dogs?|pupp(?:y|ies)|cats?|kittens?|horses?|pets?|animals?|birds?|neighbou?r'?s? (?:dog|cat)|hamsters?|rabbits?)", 4),
    ),
    "evasion": (
        r"\b(?:without (?:getting|being|ever being) (?:caught|noticed|detected|arrested|found out|traced|seen)|get(?:ting)? away with (?:it|murder|a crime|this|breaking)|cover (?:up )?(?:my|your|their|the|our) tracks"
        r"|(?:evad\w+|avoid\w*|escap\w+) (?:\w+ )?(?:detection|capture|law enforcement|the police|police|arrest|the law|prosecution|punishment)|leav(?:e|ing) no (?:trace|evidence|fingerprints)|without (?:anyone|anybody|them|her|him|my \w+|the \w+) (?:knowing|noticing|seeing|finding out)|without (?:her|his|their) (?:knowledge|consent|permission|noticing))\b",
        r"\b(?:develop an illegal)\b|\b(?:illegal|criminal|unlawful) (?:activit\w+|acts?|business|operation|enterprise|ring)\b",
    ),
}
_COMPILED = {name: tuple(re.compile(pattern) for pattern in patterns) for name, patterns in _RULES.items()}

_KINDLY = re.compile(
    r"\b(?:prevent(?:s|ing|ion)?|protect(?:s|ing|ion)?(?: (?:myself|yourself|my|our|your|against|from|\w+))?|defend against"
    r"|guard against|recogni[sz]e|spot|report(?:s|ing)? (?:an?|the|someone|suspected)|detect(?:s|ing)?|combat(?:s|ing)?"
    r"|raise awareness|dangers of|risks of|signs of|symptoms of|history of|definition of|what (?:is|are|was|were|does|did)(?! (?:the|a|an|some|your)(?: \w+)? (?:ways?|steps?|methods?|tips|strateg\w+))"
    r"|who (?:is|was|were)|when (?:did|was|were)|why (?:is|are|do|does|did|was|were)|laws? (?:about|against|on)|illegal to"
    r"|(?:help|support|counsel\w*) (?:for )?(?:\w+ )?(?:victims?|survivors?)|recover(?:s|ing|y)? from|victims? of|survivors? of"
    r"|cope|coping|stop (?:my|a|our|someone from|people from) (?:\w+ )?(?:being|getting|from)|accused of|is it (?:wrong|legal|bad|ok))\b"
)
"""What a request for help, or for knowledge about a harm, says; it must come before the harm."""


def asks_for(text: str) -> Iterator[tuple[str, str]]:
    """The categories of harm that a text asks for, each with the words that say so.

    Args:
        text: a request, or the first words of an answer.
    """
    plain = " ".join(text[:_LONGEST].translate(_MARKS).casefold().split())
    for name, patterns in _COMPILED.items():
        for pattern in patterns:
            found = pattern.search(plain)
            if found and not _KINDLY.search(plain[max(0, found.start() - 60) : found.start()]):
                yield name, found[0][:80]
                break
