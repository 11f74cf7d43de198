"""The small world of tiny-moe: public facts, as tables.

Countries with their capital and continent, pairs of opposites, the days and months in order, the
colours of things, animals and their young. The model is trained and measured on these facts.
"""

from __future__ import annotations

# country: capital, by continent. Where a country has several capitals, the one it is known by.
_COUNTRIES = {
    "Europe": """
        Albania: Tirana; Andorra: Andorra la Vella; Austria: Vienna; Belarus: Minsk; Belgium:
        Brussels; Bosnia and Herzegovina: Sarajevo; Bulgaria: Sofia; Croatia: Zagreb; the
        Czech Republic: Prague; Denmark: Copenhagen; Estonia: Tallinn; Finland: Helsinki;
        France: Paris; Germany: Berlin; Greece: Athens; Hungary: Budapest; Iceland: Reykjavik;
        Ireland: Dublin; Italy: Rome; Kosovo: Pristina; Latvia: Riga; Liechtenstein: Vaduz;
        Lithuania: Vilnius; Luxembourg: Luxembourg; Malta: Valletta; Moldova: Chisinau;
        Monaco: Monaco; Montenegro: Podgorica; the Netherlands: Amsterdam; North Macedonia:
        Skopje; Norway: Oslo; Poland: Warsaw; Portugal: Lisbon; Romania: Bucharest; Russia:
        Moscow; San Marino: San Marino; Serbia: Belgrade; Slovakia: Bratislava; Slovenia:
        Ljubljana; Spain: Madrid; Sweden: Stockholm; Switzerland: Bern; Ukraine: Kyiv; the
        United Kingdom: London; England: London; Scotland: Edinburgh; Wales: Cardiff""",
    "Asia": """
        Afghanistan: Kabul; Armenia: Yerevan; Azerbaijan: Baku; Bahrain: Manama; Bangladesh:
        Dhaka; Bhutan: Thimphu; Brunei: Bandar Seri Begawan; Cambodia: Phnom Penh; China:
        Beijing; Cyprus: Nicosia; Georgia: Tbilisi; India: New Delhi; Indonesia: Jakarta;
        Iran: Tehran; Iraq: Baghdad; Israel: Jerusalem; Japan: Tokyo; Jordan: Amman;
        Kazakhstan: Astana; Kuwait: Kuwait City; Kyrgyzstan: Bishkek; Laos: Vientiane;
        Lebanon: Beirut; Malaysia: Kuala Lumpur; the Maldives: Male; Mongolia: Ulaanbaatar;
        Myanmar: Naypyidaw; Nepal: Kathmandu; North Korea: Pyongyang; Oman: Muscat; Pakistan:
        Islamabad; the Philippines: Manila; Qatar: Doha; Saudi Arabia: Riyadh; Singapore:
        Singapore; South Korea: Seoul; Sri Lanka: Colombo; Syria: Damascus; Taiwan: Taipei;
        Tajikistan: Dushanbe; Thailand: Bangkok; Turkey: Ankara; Turkmenistan: Ashgabat; the
        United Arab Emirates: Abu Dhabi; Uzbekistan: Tashkent; Vietnam: Hanoi; Yemen: Sanaa""",
    "Africa": """
        Algeria: Algiers; Angola: Luanda; Benin: Porto-Novo; Botswana: Gaborone; Burkina Faso:
        Ouagadougou; Burundi: Gitega; Cameroon: Yaounde; Cape Verde: Praia; Chad: N'Djamena;
        Egypt: Cairo; Eritrea: Asmara; Ethiopia: Addis Ababa; Gabon: Libreville; the Gambia:
        Banjul; Ghana: Accra; Guinea: Conakry; Kenya: Nairobi; Lesotho: Maseru; Liberia:
        Monrovia; Libya: Tripoli; Madagascar: Antananarivo; Malawi: Lilongwe; Mali: Bamako;
        Mauritania: Nouakchott; Mauritius: Port Louis; Morocco: Rabat; Mozambique: Maputo;
        Namibia: Windhoek; Niger: Niamey; Nigeria: Abuja; Rwanda: Kigali; Senegal: Dakar;
        Sierra Leone: Freetown; Somalia: Mogadishu; South Africa: Pretoria; South Sudan: Juba;
        Sudan: Khartoum; Tanzania: Dodoma; Togo: Lome; Tunisia: Tunis; Uganda: Kampala;
        Zambia: Lusaka; Zimbabwe: Harare""",
    "North America": """
        the Bahamas: Nassau; Barbados: Bridgetown; Belize: Belmopan; Canada: Ottawa; Costa
        Rica: San Jose; Cuba: Havana; the Dominican Republic: Santo Domingo; El Salvador: San
        Salvador; Guatemala: Guatemala City; Haiti: Port-au-Prince; Honduras: Tegucigalpa;
        Jamaica: Kingston; Mexico: Mexico City; Nicaragua: Managua; Panama: Panama City;
        Trinidad and Tobago: Port of Spain; the United States: Washington""",
    "South America": """
        Argentina: Buenos Aires; Bolivia: Sucre; Brazil: Brasilia; Chile: Santiago; Colombia:
        Bogota; Ecuador: Quito; Guyana: Georgetown; Paraguay: Asuncion; Peru: Lima; Suriname:
        Paramaribo; Uruguay: Montevideo; Venezuela: Caracas""",
    "Oceania": """
        Australia: Canberra; Fiji: Suva; New Zealand: Wellington; Papua New Guinea: Port
        Moresby; Samoa: Apia; Tonga: Nuku'alofa; Vanuatu: Port Vila""",
}

# word: its opposite. Each pair is learned in both directions.
_OPPOSITES = """
    hot: cold; big: small; tall: short; fast: slow; happy: sad; old: young; light: dark;
    heavy: light; rich: poor; open: closed; full: empty; hard: soft; high: low; early: late;
    good: bad; right: wrong; left: right; up: down; in: out; on: off; over: under; before:
    after; above: below; near: far; inside: outside; front: back; top: bottom; first: last;
    always: never; everything: nothing; all: none; many: few; more: less; most: least; yes:
    no; true: false; love: hate; friend: enemy; war: peace; life: death; day: night; morning:
    evening; summer: winter; north: south; east: west; begin: end; start: stop; win: lose;
    buy: sell; give: take; push: pull; come: go; arrive: leave; remember: forget; laugh: cry;
    live: die; rise: fall; ask: answer; teach: learn; send: receive; wet: dry; clean: dirty;
    loud: quiet; noisy: silent; thick: thin; wide: narrow; deep: shallow; long: short; strong:
    weak; brave: cowardly; clever: stupid; kind: cruel; polite: rude; beautiful: ugly; easy:
    difficult; simple: complicated; cheap: expensive; safe: dangerous; sharp: blunt; smooth:
    rough; sweet: sour; fresh: stale; straight: crooked; tight: loose; alive: dead; awake:
    asleep; absent: present; ancient: modern; lazy: hardworking; patient: impatient; possible:
    impossible; visible: invisible; legal: illegal; lucky: unlucky; known: unknown; equal:
    unequal; honest: dishonest; correct: incorrect; regular: irregular; public: private;
    guilty: innocent; proud: humble; generous: selfish; calm: nervous; optimist: pessimist;
    victory: defeat; success: failure; profit: loss; question: answer; entrance: exit;
    arrival: departure; attack: defend; accept: refuse; appear: disappear; agree: disagree;
    increase: decrease; include: exclude; import: export; borrow: lend; build: destroy;
    create: destroy; catch: throw; float: sink; freeze: melt; hide: show; join: separate;
    lengthen: shorten; lock: unlock; praise: blame; raise: lower; save: spend; succeed: fail;
    tie: untie; whisper: shout; wake: sleep; male: female; king: queen; man: woman; boy: girl;
    father: mother; brother: sister; uncle: aunt; husband: wife; prince: princess; hero:
    coward; giant: dwarf; master: servant; parent: child; minimum: maximum; major: minor;
    positive: negative; plus: minus; odd: even; rare: common; sunrise: sunset; heaven: hell;
    hope: despair; joy: sorrow; pleasure: pain; truth: lie; wisdom: foolishness; freedom:
    slavery; health: illness; hunger: thirst; past: future; plural: singular; urban: rural"""

# Days and months, in order.
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = (
    "January February March April May June July August September October November December"
).split()

# colour: things of that colour ("s" for things named in the plural: "bananas are yellow").
_COLOURS = {
    "red": """
        a strawberry; a cherry; a tomato; a ripe chilli; blood; a fire engine; a ruby; a
        poppy; a ladybird; a stop sign; a raspberry; ketchup; a brick""",
    "orange": """
        an orange; a carrot; a pumpkin; a mandarin; a basketball; a goldfish; an apricot; a
        traffic cone""",
    "yellow": """
        a banana; a lemon; the sun; a sunflower; butter; a daffodil; an egg yolk; a canary;
        mustard; corn; a chick; a dandelion; honey""",
    "green": """
        grass; a frog; a lime; spinach; a cucumber; broccoli; an emerald; a pea; a cactus;
        moss; a clover; a crocodile; lettuce; a leaf; a grasshopper; celery; a kiwi; parsley""",
    "blue": """
        the sky; the sea; a sapphire; a blueberry; a cornflower; a bluebell; the ocean; denim;
        a forget-me-not""",
    "purple": """
        an aubergine; a plum; lavender; an amethyst; a violet; a beetroot; a fig""",
    "pink": """
        a flamingo; a pig; bubblegum; cherry blossom; a prawn; salmon; candy floss""",
    "brown": """
        chocolate; coffee; wood; a brown bear; soil; cinnamon; a chestnut; mud; a walnut;
        leather; toast; a sparrow; a potato; bark; caramel; gravy; an acorn""",
    "black": """
        coal; the night sky; a panther; a raven; a crow; tar; ink; a blackberry; liquorice;
        pepper; a tyre; soot; a piano; a bowler hat; a blackbird; a witch's hat""",
    "white": """
        snow; milk; salt; sugar; a polar bear; a swan; a cloud; flour; rice; paper; chalk;
        ivory; cotton; a snowman; a daisy; a ghost; a tooth; a pearl; a lily; cauliflower;
        vanilla ice cream""",
    "grey": """
        an elephant; ash; a rain cloud; a mouse; a dolphin; a rhino; stone; a wolf; concrete;
        a hippo; lead; a koala; a pigeon; a donkey; steel; smoke""",
    "gold": """
        a wedding ring; a trophy""",
    "silver": """
        a spoon; a coin; a mirror""",
}

# animal: its young.
_YOUNG = """
    dog: puppy; cat: kitten; cow: calf; horse: foal; sheep: lamb; goat: kid; pig: piglet; hen:
    chick; duck: duckling; goose: gosling; swan: cygnet; frog: tadpole; toad: tadpole; lion:
    cub; tiger: cub; bear: cub; wolf: pup; fox: kit; rabbit: bunny; hare: leveret; deer: fawn;
    kangaroo: joey; koala: joey; wombat: joey; elephant: calf; whale: calf; dolphin: calf;
    giraffe: calf; hippo: calf; rhino: calf; buffalo: calf; camel: calf; moose: calf; seal:
    pup; shark: pup; bat: pup; mouse: pup; rat: pup; otter: pup; squirrel: kit; beaver: kit;
    skunk: kit; ferret: kit; eagle: eaglet; owl: owlet; hawk: eyas; falcon: eyas; pigeon:
    squab; penguin: chick; turkey: poult; peacock: peachick; butterfly: caterpillar; moth:
    caterpillar; fly: maggot; bee: larva; ant: larva; fish: fry; salmon: parr; eel: elver;
    spider: spiderling; donkey: foal; zebra: foal; monkey: infant; gorilla: infant; leopard:
    cub; panther: cub; cheetah: cub; panda: cub; badger: cub; raccoon: kit; hedgehog: hoglet;
    porcupine: porcupette; platypus: puggle; echidna: puggle; llama: cria; alpaca: cria;
    turtle: hatchling; crocodile: hatchling; snake: snakelet; ostrich: chick; flamingo: chick;
    parrot: chick; crow: chick; robin: chick; walrus: pup; mole: pup; hamster: pup; guinea
    pig: pup; antelope: calf; yak: calf; reindeer: calf"""


def _pairs(table: str) -> list[tuple[str, str]]:
    """ "a: b; c: d" -> [("a", "b"), ("c", "d")]."""
    entries = (" ".join(entry.split()) for entry in table.split(";"))
    return [tuple(entry.split(": ")) for entry in entries]


CONTINENTS = {
    country: continent for continent, table in _COUNTRIES.items() for country, _ in _pairs(table)
}
CAPITALS = {country: city for table in _COUNTRIES.values() for country, city in _pairs(table)}


def _opposites() -> dict[str, str]:
    """Both directions; the first pair that names a word decides: "light" goes with "dark"."""
    table: dict[str, str] = {}
    for word, other in _pairs(_OPPOSITES):
        table.setdefault(word, other)
        table.setdefault(other, word)
    return table


OPPOSITES = _opposites()
COLOURS = {
    " ".join(thing.split()): colour
    for colour, things in _COLOURS.items()
    for thing in things.split(";")
}
YOUNG = dict(_pairs(_YOUNG))
