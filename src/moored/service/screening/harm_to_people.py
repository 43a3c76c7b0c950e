# SPDX-License-Identifier: Apache-2.0
"""Requests for harm to body and mind, as one can read them. Nothing here says how anything is done."""

from __future__ import annotations

from moored.service.screening.harm_words import DRUG, GET, GROUP, MAKE, SOMEBODY, SPEAK, WEAPON, near

TO_PEOPLE: dict[str, tuple[str, ...]] = {
    "weapons": (
        near(MAKE + "|modify|turn|convert|3d[- ]print", WEAPON),
        near(GET, WEAPON + r") (?:without|illegally|on the (?:dark|black)|no (?:background|licen[cs]e|permit)", 3),
        near("detonat(?:e|ing)|plant(?:s|ing)?|hid(?:e|ing)|set off|smuggl(?:e|ing)", WEAPON),
        near("best uses? for|illegally (?:own|carry|buy)", WEAPON),
    ),
    "drugs": (
        near(MAKE + "|" + GET + "|synthesi[sz]e|deal in|push|hide|inject|snort", DRUG),
        near("fak(?:e|ing)|forg(?:e|ing)", "prescriptions?"),
        near("slip|put|spike|drug", r"drinks?|drugs? in"),
        near(
            "promot(?:e|es|ing)|encourag(?:e|es|ing)|sells?",
            r"(?:illegal )?drugs?|drug (?:use|abuse)|smoking|binge drinking",
        ),
        near(r"sell(?:s|ing)?|deal\w*|crush\w*|snort\w*|steal\w*", "pills"),
        r"\bget (?:high|past a drug test)\b|\bdrug (?:dealer|mule|cartel)s?\b",
    ),
    "violence": (
        near(
            r"kill(?:s|ing)?|murder(?:s|ing)?|stab(?:s|bing)?|strangl(?:e|es|ing)|suffocat\w+|smother\w*|chok(?:e|ing)"
            r"|poison(?:s|ing)?|assassinat\w+|execut(?:e|ing)|shoot(?:s|ing)?|tortur(?:e|es|ing)|kidnap(?:s|ping)?"
            r"|abduct\w*|beat(?:ing)?(?: up)?|assault\w*|attack(?:s|ing)?|hurt(?:ing)?|injur(?:e|ing)|maim\w*|ambush\w*"
            r"|drown(?:ing)?|lynch\w*|behead\w*|mug|rob|threaten(?:s|ing)?|punch\w*|slap\w*|burn(?:ing)?|hit(?:ting)?"
            r"|harm(?:ing)?|run over|get rid of|hire a hitman",
            SOMEBODY,
            4,
        ),
        r"\b(?:commit|committing|plan|planning|get away with|cover up|perfect) (?:\w+ ){0,2}?(?:murders?"
        r"|killings?|assault"
        r"|massacres?|arson|manslaughter|homicides?|violence|mass shootings?|school shootings?|genocide"
        r"|kidnappings?)\b",
        near(
            r"hid(?:e|ing)|dispos(?:e|ing) of|get(?:ting)? rid of|dissolv\w+|bury",
            r"(?:dead )?bod(?:y|ies)|corpses?",
            3,
        ),
        near("threatening|threats?", r"letters?|messages?|notes?|to (?:kill|shoot|harm|hurt)", 3),
        near("clean up|help|hide|shelter", r"crime scenes?|murderers?|killers?|fugitives?"),
        r"\bmake it look like an? (?:accident|suicide)\b|\bhit ?m[ae]n\b|\bcontract killing\b",
        near("throw(?:ing)?|splash", "acid"),
        near(
            "glorif(?:y|ies)|prais(?:e|es|ing)|celebrat\\w+|incit\\w+|promot\\w+|encourag\\w+|calls? (?:for|to)"
            "|calling for",
            r"violen\w+|riots?|massacres?|bloodshed|a race war|chaos|crushing|lynch\w*|murders?",
            5,
        ),
        near("start|incite|initiate|cause", r"brawl|riots?|race war|fights?|stampede", 3),
        near("set", r"fire to|on fire", 5),
        near("extract|cut off|break|rip out|gouge", r"(?:tongue|fingers?|legs?|arms?|bones?|eyes?|kneecaps?)", 5),
        near(
            "sabotag\\w+|derail\\w*|disconnect\\w*|cut|tamper with",
            r"brakes?|trains?|planes?|roller coasters?|transportation|bridges?|power|pipelines?|infrastructure"
            r"|car|aircraft",
            5,
        ),
    ),
    "terrorism": (
        r"\bterroris[mt]s?\b(?! ?(?:attacks? (?:of|in) (?:19|20)\d\d|financing laws?))",
        near(
            r"join|recruit\w*|support|fund|rais\w+|start|lead",
            r"(?:extremist|jihad\w*|militia|terror|isis|al-?qaeda|neo-?nazi|gangs?|cartel|radicali[sz]\w+)",
            6,
        ),
        near(r"take|hold", "hostages?", 3),
        near(
            r"hijack\w*|derail\w*|blow(?:ing)? up|bomb(?:ing)?",
            r"hostages?|planes?|trains?|airports?|stations?|bus(?:es)?|ships?|embass\w+|building|school|church"
            r"|mosque|synagogue",
            4,
        ),
        r"\bradicali[sz](?:e|ing|ation)\b|\bmaximum casualties\b|\bmass casualt\w+\b|\bprotection money\b"
        r"|\bextort\w*\b|\bblackmail\w*\b",
        near(
            r"traffic\w*|smuggl\w+",
            r"people|humans?|migrants?|organs?|women|children|girls|endangered|species|animals?|parrots?|ivory"
            r"|weapons?|goods|contraband|cigarettes",
            5,
        ),
        near(r"launder\w*", r"money|cash|profits|drug"),
    ),
    "self-harm": (
        r"\b(?:commit(?:ting)?|committed) suicide\b|\bsuicide (?:method|note|pact)s?\b|\bself[- ]harm(?:ing)?\b",
        r"\b(?:kill|cut|cutting|hurt|hang|starve|harm|drown|shoot|poison|injure|burn) (?:myself|yourself"
        r"|themselves|himself|herself|themself)\b",
        near(r"end(?:ing)?|tak(?:e|ing)", r"(?:my|your|their|his|her) (?:own )?life", 1),
        r"\b(?:pro[- ]?ana|thinspo)\b|\b(?:anorexi\w+|bulimi\w+|eating disorders?)\b(?=.{0,60}\b(?:healthy"
        r"|lifestyle|tips|start|become|promot|encourag))",
        near(
            r"promot\w+|encourag\w+|glorif\w+|develop\w*|become|hide",
            r"anorexi\w+|bulimi\w+|eating disorders?|suicid\w+|self-harm\w*|scars",
            6,
        ),
        near(
            r"talk|push|drive|convince|persuade|encourage",
            r"into (?:jumping|suicide|killing)|to (?:suicide|kill|jump)|suicid\w+",
            5,
        ),
        r"\bgoodbye note\b|\bdisappear from this world\b|\bwithout pain\b(?=.*\blife\b)|\bstop eating\b"
        r"|\bpunish my body\b|\bpainless(?:ly)? (?:die|death|suicide)\b",
    ),
    "sexual": (
        near(
            r"writ(?:e|ing)|generat\w+|creat\w+|make|send|share|film\w*|post|leak|distribut\w+|sell",
            r"(?:explicit|erotic|porn\w*|nudes?|nude (?:pictures?|photos?|images?)|intimate (?:video|photo"
            r"|picture)s?|sex (?:tape|scene|video)s?|lewd|deepfakes?|upskirt\w*|revenge porn)",
            6,
        ),
        r"\b(?:child|kiddie|underage) (?:porn\w*|sex\w*|nud\w*)\b|\bcsam\b|\bp[ae]edophil\w+\b|\bsex (?:with"
        r"|to) (?:a |an )?(?:child|minor|kid|student|underage)\w*\b",
        near(
            r"pressur\w+|forc(?:e|ing)|coerc\w+|trick\w*|drug\w*|seduc\w+|groom\w*|lure",
            r"(?:into )?sex|into bed|minors?|child(?:ren)?|teen\w*|underage|undress\w*|nudes",
            6,
        ),
        r"\b(?:rap(?:e|es|ing)|molest\w*|grop(?:e|es|ing)|sexually (?:assault|abuse"
        r"|harass)\w*)\b(?! (?:survivors?|victims?|prevention|kit|crisis))",
        near(
            r"film|spy|peep|watch|record|hidden camera",
            r"shower\w*|undress\w*|bathroom|changing room|locker room|naked|bedroom",
            6,
        ),
        near(
            r"get(?:ting)? (?:past|around)|bypass\w*",
            r"age (?:check|verification|gate)|adult site|parental (?:controls?|filters?)",
            4,
        ),
        r"\bwatch porn\b|\bfind prostitutes?\b|\bescort services?\b",
    ),
    "children": (
        near(
            r"abus\w+|beat\w*|hit\w*|lock\w*|leav(?:e|ing)|starv\w+|punish\w*|frighten\w*|scar(?:e|es|ing)"
            r"|sham(?:e|ing)|humiliat\w+|exploit\w*|neglect\w*|threaten\w*|smack\w*|spank\w*|sell|manipulat\w+"
            r"|make|force",
            r"(?:child(?:ren)?|kids?|toddler|bab(?:y|ies)|boys?|girls?|daughters?|sons?|pupils?|infants?"
            r"|ten-year-old|orphans?)\b.{0,40}?\b(?:alone|cellar|closet|meals?|hungry|work\w*|obey\w*|dark|night"
            r"|beat\w*|in front of|school|without (?:food|getting)|lesson|chores|floors?|black market|labou?r"
            r"|afraid|abuse|car|instead)",
            4,
        ),
        r"\bchild (?:abuse|labou?r|bride|soldiers?|trafficking|marriage)\b(?=.{0,60}\b(?:get away|set up"
        r"|hide|organi[sz]e|profit|recruit))",
        near(r"child(?:ren)?|kids?", r"black market|worth the most"),
    ),
    "hate": (
        near(
            SPEAK,
            r"(?:racist|sexist|homophobic|transphobic|antisemitic|anti-semitic|islamophobic|xenophobic"
            r"|misogynist\w*|hateful|bigoted|offensive|derogatory|demeaning|hate|nazi|white suprem\w+|slurs?"
            r"|insults?)",
            5,
        ),
        r"\bhate[- ](?:speech|slogan|crimes?|group|propaganda)\b|\bwith slurs\b|\bracial slur\b"
        r"|\bwhite suprem\w+\b|\bethnic cleansing\b|\b(?:promot|incit|spread"
        r"|encourag)\w* (?:\w+ ){0,3}(?:hatred|hate|racism|discrimination|intolerance|white supremacy)\b",
        near(
            r"insult\w*|mock\w*|makes? fun of|humiliat\w+|degrad\w+|dehumani[sz]\w+|ridicul\w+|demoni[sz]\w+"
            r"|vilif\w+|discriminat\w+|exclud\w+|ban(?:s|ning)?|reject\w*|grad(?:e|ing)|refus\w+|fir(?:e|ing)"
            r"|keep|exterminat\w+|get rid of|deport|attack\w*|chant against|pay",
            GROUP
            + r"|religion|skin colou?r|pregnan\w+|accent|surnames?|disabilit\w+|stutter\w*|pregnant|colleague with"
            r"|black families",
            7,
        ),
        near(
            "says?|claims?|calls?|argu(?:e|es)|proves?|joke\\w*|reasons?|why",
            r"(?:"
            + GROUP
            + r")\b(?:[ ,]+[\w-]+){0,4}?[ ,]+(?:lazy|vermin|inferior|stupid|dumb|criminals?|smell\w*|diseases?"
            r"|deserve|parasites?|dirty|dangerous|worthless|subhuman|evil|annoying|less intelligent|worse|bad"
            r"|terrible|ruin\w*|animals|terrorists)",
            6,
        ),
        near(
            "worst (?:traits|things|stereotypes)|stereotypes?|most hurtful|offensive (?:term|word|joke)s?|jokes?",
            r"of|about|for|against|at|that",
            2,
        )
        + r"(?:[ ,]+[\w-]+){0,4}?[ ,]+(?:"
        + GROUP
        + r"|person|people)\b",
        near(
            "only|no",
            r"(?:white|straight|young|male|christian) (?:men|people|applicants|women|candidates|guests"
            r"|males) (?:to )?(?:apply|allowed|only)?",
            3,
        ),
    ),
    "harassment": (
        r"\b(?:cyber ?)?bull(?:y|ies|ying)\b|\bharass(?:es|ing|ment)?\b|\btroll(?:s"
        r"|ing)?\b (?:\w+ ){0,4}(?:online|survivor|people|someone)|\bstalk(?:ing)?\b (?:an?|my|her|his"
        r"|someone|people|the|your)\b|\bcyber-?stalk\w*|\bdox(?:x)?(?:ing|ed|es)?\b|\bswat(?:ting)\b"
        r"|\bgaslight\w*\b|\bdefam\w+\b",
        near(
            r"ruin\w*|destroy\w*|wreck\w*|damag\w+|sabotag\w+|end",
            r"(?:reputation|career|marriage|life|relationship|credibility)",
            4,
        ),
        near(
            r"mak(?:e|ing)|spread\w*|writ(?:e|ing)",
            r"(?:false|fake|untrue) (?:accusations?|rumou?rs?|claims?|allegations?)",
            4,
        ),
        near(r"make", r"(?:feel (?:guilty|worthless|bad|unsafe|ashamed)|jealous|cry)", 6),
        near(
            r"manipulat\w+|brainwash\w*|guilt[- ]trip|coerc\w+|intimidat\w+|humiliat\w+|scare|frighten|torment\w*",
            SOMEBODY,
            4,
        ),
        near(r"get|take", r"(?:revenge|back at)\b", 4),
        r"\bthreaten\w* (?:a|an|my|his|her|their|the)\b",
    ),
}
"""Patterns by category."""
