"""The words of the synthetic texts: names, places, companies, and the sentences that they stand in.

``{slot}`` is filled by :mod:`bouton.data.pii.synthetic`; slots that are no entity (numbers, prices, times, products)
are there to be told apart from those that are. The sentences of the three splits share no wording.
"""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


FIRST_NAMES = _words(
    """
    Ada Adam Agnes Ahmed Aisha Alan Albert Alice Amara Amir Andrea Anna Anton Arjun Astrid Aurora Beatrix Ben
    Bianca Boris Brenda Bruno Camila Carla Carlos Cedric Chen Clara Colin Daniel Daphne David Deepa Denise Diego
    Dmitri Dora Edith Edwin Elena Elias Emma Erik Esther Eva Fatima Felix Fiona Frank Freya Gavin George Gita
    Grace Greta Hamid Hannah Harold Hassan Heidi Helen Henrik Hiro Hugo Ida Igor Ilse Ingrid Irene Isaac Ivan Jack
    Jamal James Jana Jasmine Jean Joan Johan Joseph Judith Julia Kai Karen Karim Keiko Kenji Kofi Lars Laura Leila
    Leo Lina Linda Lucia Luis Magnus Mai Malik Marco Maria Martha Matteo Maya Mei Miguel Mila Mohammed Monica
    Nadia Naomi Neil Nina Noah Nora Olga Oliver Omar Oscar Pablo Patricia Paul Pedro Petra Philip Priya Rachel
    Rafael Ravi Rosa Ruth Samir Sara Selma Simon Sofia Stefan Susan Sven Tariq Teresa Thomas Tomas Ulrich Ursula
    Valeria Victor Vikram Walter Wanda Wei William Yara Yusuf Zara Zoe
    """
)
LAST_NAMES = _words(
    """
    Abbott Adeyemi Almeida Andersen Bauer Becker Bell Bianchi Bishop Brandt Brown Carter Castillo Chandra Cohen
    Costa Dahl Das Davis Delgado Diaz Dubois Eriksen Evans Farouk Fischer Foster Fuentes Garcia Gomez Gray Gupta
    Haddad Hansen Harris Hayashi Hoffmann Hughes Ibrahim Ito Ivanova Jackson Jansen Johnson Kamara Kapoor Keller
    Khan Kim King Kovacs Kowalski Lambert Larsen Lee Lewis Lindgren Lopez Marino Martin Mbeki Medina Mendes Meyer
    Miller Moreau Morris Nakamura Nguyen Nielsen Novak Okafor Olsen Ortega Osei Park Patel Pereira Petrov Popescu
    Quinn Rahman Ramos Reyes Ricci Rossi Russo Sato Schmidt Silva Singh Sokolov Suzuki Takahashi Tanaka Taylor
    Thomsen Torres Turner Usman Varga Vasquez Vogel Wagner Walker Wang Weber White Wilson Wong Wright Yamamoto
    Yilmaz Young Zhang Ziegler
    """
)
# A last name may also be made of two halves; those of a split are made of halves of that split.
NAME_HEADS = _words(
    """
    Ash Black Brad Bruns Cald Cran Dal Den Eld Fair Gold Hart Hazel Kings Lang Mar Nor Oak Pem Rad Shel Stan Thorn
    Wal West Whit Win Wood Stein Rosen Lind Berg
    """
)
NAME_TAILS = _words(
    """
    berg bridge brook by dale don field ford ham hurst land ley man mark mont shaw son ton well wick worth
    """
)
STREET_NAMES = _words(
    """
    Acacia Alder Bay Beacon Birch Bridge Canal Castle Cedar Chapel Cherry Church Clifton College Court Cypress
    Dover Eagle Elm Fairview Forest Franklin Garden Grant Green Grove Harbor Hickory High Hill Holly Ivy Jefferson
    Juniper Kingsway Lake Laurel Lincoln Linden Madison Magnolia Main Maple Market Meadow Mill Mulberry North Oak
    Orchard Palm Park Pine Poplar Prospect Queen Redwood River Rose School Spring Spruce Station Summit Sunset
    Sycamore Union Valley Victoria Walnut Washington Willow Windsor
    """
)
STREET_KINDS = _words(
    """
    Street St Avenue Ave Road Rd Lane Ln Drive Dr Court Boulevard Blvd Way Place Terrace
    """
)
CITIES = _words(
    """
    Aberdeen Accra Adelaide Ankara Antwerp Athens Auckland Austin Baltimore Bangalore Barcelona Bergen Berlin
    Bogota Boston Bristol Brussels Budapest Cairo Calgary Cardiff Chicago Cologne Copenhagen Dakar Dallas Delhi
    Denver Detroit Dublin Durban Edinburgh Florence Geneva Genoa Glasgow Hamburg Hanoi Helsinki Houston Istanbul
    Jakarta Karachi Kyoto Lagos Leeds Lima Lisbon Liverpool London Lyon Madrid Manchester Manila Marseille
    Melbourne Memphis Miami Milan Montreal Moscow Mumbai Munich Nairobi Naples Nice Orlando Osaka Oslo Ottawa
    Oxford Palermo Paris Perth Phoenix Porto Prague Quito Rabat Riga Rome Rotterdam Salzburg Santiago Seattle
    Seoul Seville Sofia Stockholm Sydney Tampa Tokyo Toronto Toulouse Tunis Turin Utrecht Valencia Vancouver
    Venice Vienna Warsaw York Zagreb Zurich
    """
)
COUNTRIES = _words(
    """
    Argentina Australia Austria Belgium Bolivia Brazil Bulgaria Canada Chile Colombia Croatia Cuba Denmark Ecuador
    Egypt Estonia Ethiopia Finland France Germany Ghana Greece Hungary Iceland India Indonesia Iran Ireland Italy
    Jamaica Japan Jordan Kenya Latvia Lebanon Malaysia Mexico Mongolia Morocco Nepal Nigeria Norway Pakistan
    Panama Peru Poland Portugal Romania Senegal Serbia Singapore Slovakia Spain Sweden Switzerland Thailand
    Tunisia Turkey Uganda Ukraine Uruguay Vietnam Wales Zambia
    """
)
STATES = _words(
    """
    AL AZ CA CO FL GA IL IN KS MA MD ME MI MN MO NC NJ NM NV NY OH OR PA TN TX UT VA WA WI
    """
)
COMPANY_NAMES = _words(
    """
    Acorn Alpine Amber Apex Arbor Argo Astra Atlas Aurora Axiom Beacon Birchwood Bluestone Boreal Brightside
    Cascade Catalyst Centauri Cobalt Compass Copper Corvus Crestview Delta Dynamo Echo Eclipse Ember Evergreen
    Falcon Fjord Fulcrum Gemini Granite Halcyon Helix Horizon Hyperion Ironwood Jupiter Keystone Lantern Lumen
    Magellan Meridian Mosaic Nimbus Northstar Nova Oakridge Obsidian Omega Onyx Orbit Osprey Paragon Pegasus
    Pinnacle Polaris Quantum Quartz Radian Ridgeway Sable Saffron Sequoia Sierra Silverline Solstice Sterling
    Summit Tangent Terra Titan Trident Umbra Vanguard Vertex Vista Zenith Zephyr
    """
)
COMPANY_KINDS = _words(
    """
    Inc Ltd LLC GmbH Corp Group Systems Logistics Bank Insurance Labs Partners Foods Energy Media Health Pharma
    Airlines Motors Software
    """
)
WORDS = _words(
    """
    account agenda apple archive balance basket battery bicycle blanket bottle bucket budget button cable camera
    candle carpet chapter charger coffee contract cookie course curtain delivery dinner document engine envelope
    exam flight folder garage garden guitar hammer helmet invoice jacket kettle kitchen ladder lamp laptop lesson
    letter license manual meeting mirror monitor notebook novel order oven package paper parcel pencil phone photo
    piano pillow plan printer project receipt recipe refund report ring router scarf schedule shirt shoe sofa
    speaker subscription suitcase summary table ticket toaster towel tractor umbrella update vacuum visit wallet
    warranty watch window
    """
)
PRODUCTS = _words(
    """
    Model Edition Series Release Version Chapter Room Gate Flight Line Level Unit Bus Route Platform Page
    """
)
# Beginning, middle and end of a syllable of invented words.
SYLLABLE = (
    _words("b bl br c ch cl d dr f fl g gr h j k l m n p pl pr qu r s sh sl st t th tr v w wh y z"),
    _words("a ai au e ea ee i ie o oa oo ou u"),
    ("", *_words("b ck d ft g l ll lt m n nd ng nt p r rd rn rt s ss st t th x")),
)

TRAIN_TEMPLATES = """
My name is {person} and I live at {address}.
Please send the {word} to {address}.
You can reach me at {phone} or {email}.
{person} was born on {date} in {location}.
The card number is {card}, it expires in {number} months.
Hi, this is {person} from {org}. Could you call me back on {phone}?
I would like to change my email to {email}.
{person} works for {org} in {location}.
Her social security number is {ssn}.
The {word} was delivered to {person} on {date}.
We met {person} and {person} at the {word} fair in {location}.
Invoice {number} for {price} was paid with card {card}.
Contact: {person}, {phone}, {email}
Please update the address of {person} to {address}.
My passport number is {passport} and I was born on {date}.
Employee {employee} has asked for a new {word}.
Visit {url} to see the {word}.
The login came from {ip} at {time}.
Dear {person}, thank you for the {word} that you ordered on {date}.
{org} has opened an office in {location}.
The meeting with {org} is on {date} at {time}.
I paid {price} for the {word} and never got it.
What is the balance of {card}?
Call {phone} before {time} please.
He moved from {location} to {location} on {date}.
Send a copy to {email} and to {email}.
{person} and {person} have bought the {word} together.
Our server {ip} does not answer, see {url} for the log.
The tax number of {person} is {ssn}.
Who is {person}? She lives in {location}.
{person}'s phone number is {phone}.
The {word} costs {price} and takes {number} days.
{product} {number} leaves at {time}.
Where is my {word}? The order number is {number}.
It was about {number} degrees, too hot for a {word}.
Is there a {word} for less than {price}?
I read {product} {number} of the {word} yesterday.
The {word} has {number} buttons and a {word}.
There are {number} people in the queue since {time}.
Thanks, that solved the problem with the {word}.
Can I get a refund for my {word}?
Good morning, I have a question about my {word}.
Regards, {person}
From: {person} <{email}>
To: {email}; date: {date}
{person}, {address}
Born {date}, passport {passport}, phone {phone}.
I forgot my password, my user name is {email}.
{person} of {org} signed the {word} on {date}.
The flight to {location} is at {time}, seat {number}.
Ask {person} about the {word}.
I think {person} has the {word}, not {person}.
{org} and {org} will merge next year.
Mail the cheque to {person} at {address}.
Charge my card {card} with {price}.
Mr {last} will see you now.
Mrs {last} called at {time} and left the number {phone}.
Doctor {last} has moved to {address}.
Did you see what {first} wrote about the {word}?
{first}, please bring the {word} on {date}.
{first} is on holiday in {location} until {date}.
Your badge {employee} was used at {time}.
the {word} is at {address}
see {url} or write to {email}
Customer {person} (born {date}) has the number {employee}.
""".strip().splitlines()

VAL_TEMPLATES = """
I am {person}, my birthday is {date}.
The parcel for {person} goes to {address}, phone {phone}.
Write to {email} if the {word} is late.
{org} sent {person} to {location}.
Please block the card {card} right away.
SSN {ssn} belongs to {person}.
Someone at {ip} opened {url} at {time}.
Passport {passport} was issued on {date}.
A {word} for {price} sounds fair to me.
{product} {number} was closed for {number} hours.
Has {first} found the {word}?
Ms {last} from {org} will join at {time}.
We need {number} more of them by {time}.
Staff number {employee} is not in the list.
Have a look at {url} when you are in {location}.
""".strip().splitlines()

TEST_TEMPLATES = """
Hello, {person} speaking, is this {org}?
Could you ship it to {address} instead?
New customer: {person}, {email}, {phone}, {address}.
On {date} the patient {person} was seen in {location}.
If {phone} is busy, try {phone}.
Kindly debit {card} for the amount of {price}.
They asked for my social security number, which is {ssn}.
My colleague {person} ({email}) will take over the {word}.
{location} is where {person} grew up.
{person} left {org} for {org} on {date}.
Traffic from {ip} was blocked after {number} attempts.
All details are on {url} now.
The holder of passport {passport} is {person}.
Please remove badge {employee} from the system.
Yours sincerely, {person}, {org}
Has anyone in {location} seen {first} lately?
Mr {last} and Mrs {last} share a {word}.
I told {first} that the {word} costs {price}.
Between {date} and {date} I was not at home.
Deliveries for {address} go through the back door.
This {word} is {number} years old and still works.
After {time} nobody picks up, so I gave up.
{product} {number} is out of order again.
Could somebody explain how a {word} works?
I want {number} of those for {price} each.
Reset the account of {email}, it was locked at {time}.
Sign here: {person}, {date}
{org} charged {price} to {card} without asking.
""".strip().splitlines()
